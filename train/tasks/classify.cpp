#include <fmt/format.h>

#include <algorithm>

#include "engine/io/file.h"
#include "train/metrics.h"
#include "train/tasks/finetune.h"

namespace sft {
namespace {

class ClassifyObjective : public FineTuneObjective {
 public:
  ClassifyObjective(const RunConfig& config, const FineTuneModel& model,
                    const std::vector<std::string>& classes, const Split& train, const Split& dev,
                    int decode_threads, const FrameBudget& frames)
      : FineTuneObjective(config, model, train, dev, decode_threads, frames),
        classes_(classes),
        train_labels_(labels_of(train)),
        dev_labels_(labels_of(dev)) {}

  void begin_update(const Rng&, const Batch& all) override { update_size_ = all.size(); }

  Scores evaluate(Context& ctx, const std::string& folder) override {
    std::vector<int32_t> guess(dev_labels_.size());
    for_each_dev_batch(ctx, [&](const Batch& batch, Tensor logits, Segments) {
      for (size_t b = 0; b < batch.size(); ++b) {
        const float* row = logits.row(static_cast<int64_t>(b));
        guess[batch[b]] = static_cast<int32_t>(std::max_element(row, row + logits.width()) - row);
      }
    });
    const double share = accuracy(guess, dev_labels_);
    std::string ref, hyp;
    for (size_t i = 0; i < guess.size(); ++i) {
      const std::string& id = dev_split_.manifest.rows[i].id;
      ref += trn_line(classes_[dev_labels_[i]], id), hyp += trn_line(classes_[guess[i]], id);
    }
    write_text(folder + "/ref.trn", ref);
    write_text(folder + "/hyp.trn", hyp);
    write_text(folder + "/scores.json", fmt::format("{{\"accuracy\":{:.6g}}}\n", share));
    return {.values = {{"accuracy", share}}, .selected = share, .smaller_is_better = false};
  }

 protected:
  Var losses(Tape& t, Var logits, const Batch& batch) override {
    labels_.clear();
    for (uint32_t row : batch) labels_.push_back(train_labels_[row]);
    weights_.assign(batch.size(), 1.0f / static_cast<float>(update_size_));
    return cross_entropy(t, logits, labels_, weights_);
  }

 private:
  std::vector<int32_t> labels_of(const Split& split) const {
    std::vector<int32_t> labels;
    for (const Utterance& row : split.manifest.rows) {
      const std::string name(split.manifest.required(row, config_.data.label));
      const auto at = std::find(classes_.begin(), classes_.end(), name);
      if (at == classes_.end())
        fail(Kind::input, "{}: {} is {}, which no training row is", split.manifest.where(row),
             config_.data.label, printable(name));
      labels.push_back(static_cast<int32_t>(at - classes_.begin()));
    }
    return labels;
  }

  const std::vector<std::string>& classes_;
  std::vector<int32_t> train_labels_, dev_labels_, labels_;
};

}  // namespace

std::unique_ptr<Objective> classify_objective(const RunConfig& config, const FineTuneModel& model,
                                              const std::vector<std::string>& classes,
                                              const Split& train, const Split& dev,
                                              int decode_threads, const FrameBudget& frames) {
  return std::make_unique<ClassifyObjective>(config, model, classes, train, dev, decode_threads,
                                             frames);
}

}  // namespace sft
