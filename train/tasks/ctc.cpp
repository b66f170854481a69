#include <fmt/format.h>

#include <algorithm>

#include "engine/io/file.h"
#include "train/metrics.h"
#include "train/tasks/finetune.h"

namespace sft {
namespace {

// Scores of decoded utterances: their trn files and rates.
class Decoded {
 public:
  Decoded(const Split& split, const Units& units)
      : split_(split), units_(units), hyp_(split.manifest.rows.size()) {}

  void add(uint32_t row, Tensor logits) {
    const std::vector<int32_t> labels = greedy_ctc(logits, units_.blank());
    edits_ += count_edits(split_.check.rows[row].labels, labels);
    hyp_[row] = units_.decode(labels);
    for (int64_t t = 0; t < logits.rows(); ++t) {
      const float* frame = logits.row(t);
      blanks_ += std::max_element(frame, frame + logits.width()) - frame == units_.blank();
    }
    frames_ += logits.rows();
  }

  // ref.trn, hyp.trn, scores.json; the rates by name.
  std::vector<std::pair<std::string, double>> write(const std::string& folder) const {
    std::string ref_trn, hyp_trn;
    Edits words, characters;
    for (size_t i = 0; i < hyp_.size(); ++i) {
      const std::string ref = units_.decode(split_.check.rows[i].labels);
      const std::string& id = split_.manifest.rows[i].id;
      ref_trn += trn_line(ref, id), hyp_trn += trn_line(hyp_[i], id);
      words += word_edits(ref, hyp_[i]), characters += character_edits(ref, hyp_[i]);
    }
    write_text(folder + "/ref.trn", ref_trn);
    write_text(folder + "/hyp.trn", hyp_trn);
    std::vector<std::pair<std::string, double>> rates{{"wer", words.rate()}};
    if (units_.characters()) rates.emplace_back("cer", characters.rate());
    rates.emplace_back("per", edits_.rate());
    rates.emplace_back(
        "blank", static_cast<double>(blanks_) / static_cast<double>(std::max<int64_t>(frames_, 1)));
    return rates;
  }

 private:
  const Split& split_;
  const Units& units_;
  std::vector<std::string> hyp_;
  Edits edits_;
  int64_t blanks_ = 0, frames_ = 0;
};

class CtcObjective : public FineTuneObjective {
 public:
  CtcObjective(const RunConfig& config, const FineTuneModel& model, const Units& units,
               const Split& train, const Split& dev, int decode_threads, const FrameBudget& frames)
      : FineTuneObjective(config, model, train, dev, decode_threads, frames), units_(units) {
    if (config.eval.select == "cer" && !units.characters())
      fail(Kind::usage,
           "eval.select is cer, but the units are not characters (expected wer or per)");
  }

  void begin_update(const Rng&, const Batch& all) override { update_size_ = all.size(); }

  Scores evaluate(Context& ctx, const std::string& folder) override {
    Decoded decoded(dev_split_, units_);
    for_each_dev_batch(ctx, [&](const Batch& batch, Tensor logits, Segments segments) {
      for (size_t b = 0; b < batch.size(); ++b)
        decoded.add(batch[b],
                    logits.slice(segments.starts[b], segments.length(static_cast<int>(b))));
    });
    Scores scores{.values = decoded.write(folder)};
    std::string json;
    for (const auto& [name, value] : scores.values) {
      json += fmt::format("{}\"{}\":{:.6g}", json.empty() ? "" : ",", name, value);
      if (name == config_.eval.select) scores.selected = value;
    }
    write_text(folder + "/scores.json", "{" + json + "}\n");
    return scores;
  }

 protected:
  Var losses(Tape& t, Var logits, const Batch& batch) override {
    labels_.clear(), starts_.assign(1, 0), weights_.clear();
    for (uint32_t row : batch) {
      const std::vector<int32_t>& labels = train_split_.check.rows[row].labels;
      labels_.insert(labels_.end(), labels.begin(), labels.end());
      starts_.push_back(static_cast<int32_t>(labels_.size()));
      const double count = static_cast<double>(std::max<size_t>(1, labels.size()));
      weights_.push_back(static_cast<float>(1 / (static_cast<double>(update_size_) * count)));
    }
    return ctc(t, logits, segments_, {labels_, starts_}, weights_, units_.blank()).losses;
  }

 private:
  const Units& units_;
  std::vector<int32_t> labels_, starts_;
};

}  // namespace

std::unique_ptr<Objective> ctc_objective(const RunConfig& config, const FineTuneModel& model,
                                         const Units& units, const Split& train, const Split& dev,
                                         int decode_threads, const FrameBudget& frames) {
  return std::make_unique<CtcObjective>(config, model, units, train, dev, decode_threads, frames);
}

}  // namespace sft
