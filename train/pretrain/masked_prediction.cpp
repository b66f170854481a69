#include "train/pretrain/masked_prediction.h"

#include <algorithm>

#include "engine/ops/add_losses.h"
#include "engine/ops/right_rows.h"
#include "engine/transfer.h"
#include "train/pretrain/masked_objective.h"

namespace sft {

PretrainHead::PretrainHead(const Config& config, int64_t clusters)
    : proj(config.width, config.pretrain.dim),
      label_emb{{clusters + kSpecialLabels, config.pretrain.dim}} {}

MaskedLosses masked_prediction(Tape& t, const PretrainModel& model, Var features,
                               const MaskedBatch& batch, EncodeOptions options,
                               const RunConfig& config) {
  const auto& p = config.pretrain;
  const Var x = scale_grad(t, features, static_cast<float>(p.feature_grad_mult));
  MaskedLosses out;
  out.penalty = feature_penalty(t, x, batch.segments, batch.penalty_weights);
  options.masked = batch.masked;
  const Var hidden = model.encoder.encode(t, x, batch.segments, options).last();
  const Var y = model.pretrain.proj(t, take_rows(t, hidden, batch.masked));
  out.logits = cosine_logits(t, y, model.pretrain.label_emb, static_cast<float>(p.temperature));
  out.cross_entropy = cross_entropy(t, out.logits, batch.labels, batch.weights);
  return out;
}

namespace {

// Of the masked frames.
int64_t count_correct(Tensor logits, std::span<const int32_t> labels) {
  int64_t correct = 0;
  for (int64_t n = 0; n < logits.rows(); ++n) {
    const float* row = logits.row(n);
    correct += std::max_element(row, row + logits.width()) - row == labels[n];
  }
  return correct;
}

class ClusterObjective : public MaskedObjective {
 public:
  ClusterObjective(const RunConfig& config, const PretrainModel& model, const Targets& targets,
                   const Split& train, const Split& dev, const FrameBudget& frames)
      : MaskedObjective(config, model.encoder, train, dev, /*least=*/1, frames),
        model_(model),
        targets_(targets) {}

  std::vector<std::string> details() const override { return {"accuracy", "penalty"}; }

  void add_numbers(Context& ctx, Tensor numbers) override {
    const auto add = [&](Tensor losses, std::span<const float> weights, int64_t number) {
      add_losses(ctx, losses, weights, numbers.slice(number, 1));
    };
    ScratchScope acts(ctx.acts);
    add(losses_.cross_entropy, batch_.weights, 0);
    add(losses_.penalty, batch_.penalty_weights, 0);
    add(right_rows(ctx, losses_.logits, batch_.labels), batch_.weights, 1);
    add(losses_.penalty, batch_.penalty_weights, 2);
  }

  Scores evaluate(Context& ctx, const std::string& folder) override {
    int64_t masked = 0, correct = 0;
    double loss = 0;
    for_each_dev_batch(ctx, [&] {
      ScratchScope host(host_);
      loss += sum_of_losses(batch_.weights, on_host(ctx, losses_.cross_entropy, host_));
      correct += count_correct(on_host(ctx, losses_.logits, host_), batch_.labels);
      masked += static_cast<int64_t>(batch_.masked.size());
    });
    const double n = static_cast<double>(std::max<int64_t>(masked, 1));
    return scored({{"loss", loss / n}, {"accuracy", static_cast<double>(correct) / n}}, folder);
  }

 protected:
  void train_losses(Tape& t, Var features, const Batch& rows, uint32_t update) override {
    batch_ = place(train_, targets_.train, rows, update, update_masked_);
    losses_ = masked_prediction(t, model_, features, batch_, options_, config_);
    t.loss(losses_.cross_entropy);
    t.loss(losses_.penalty);
  }
  void dev_losses(Tape& t, Var features, const Batch& rows) override {
    batch_ = place(dev_, targets_.dev, rows, 0, 1);
    losses_ = masked_prediction(t, model_, features, batch_, {}, config_);
  }

 private:
  // Good until the next call.
  MaskedBatch place(MaskedSplit& split, const Labels& labels, const Batch& rows, uint32_t update,
                    int64_t n) {
    frame_labels_.clear();
    const HiddenFrames hidden =
        split.hide(rows, update, n, [&](uint32_t row, std::span<const int32_t> frames) {
          for (int32_t t : frames) frame_labels_.push_back(labels[row][t] + kSpecialLabels);
        });
    return {hidden.segments, hidden.masked, frame_labels_, hidden.weights, hidden.penalty_weights};
  }

  const PretrainModel& model_;
  const Targets& targets_;
  std::vector<int32_t> frame_labels_;
  MaskedBatch batch_;
  MaskedLosses losses_;
};

}  // namespace

std::unique_ptr<Objective> masked_prediction_objective(const RunConfig& config,
                                                       const PretrainModel& model,
                                                       const Targets& targets, const Split& train,
                                                       const Split& dev,
                                                       const FrameBudget& frames) {
  return std::make_unique<ClusterObjective>(config, model, targets, train, dev, frames);
}

}  // namespace sft
