#include "train/pretrain/masked_prediction.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <numeric>

#include "engine/io/file.h"
#include "engine/ops/add_losses.h"
#include "engine/ops/right_rows.h"
#include "engine/transfer.h"
#include "train/front_end.h"
#include "train/span_mask.h"

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

constexpr int32_t kMinMasks = 2;
constexpr int64_t kKeepAudio = int64_t{256} << 20;  // bytes of decoded audio
constexpr int kDevBatch = 16;

// Of the masked frames.
int64_t count_correct(Tensor logits, std::span<const int32_t> labels) {
  int64_t correct = 0;
  for (int64_t n = 0; n < logits.rows(); ++n) {
    const float* row = logits.row(n);
    correct += std::max_element(row, row + logits.width()) - row == labels[n];
  }
  return correct;
}

double sum_of_losses(std::span<const float> weights, Tensor losses) {
  double total = 0;
  for (size_t i = 0; i < weights.size(); ++i)
    total += static_cast<double>(weights[i]) * losses.f32()[i];
  return total;
}

// One split with its labels.
class MaskedSplit {
 public:
  MaskedSplit(const RunConfig& config, const Encoder& encoder, const Split& split,
              const Labels& labels, int64_t cache_bytes)
      : config_(config),
        split_(split),
        labels_(labels),
        loader_(split.manifest, kDecodeThreads, kKeepAudio),
        front_end_(encoder, loader_, split.samples(), cache_bytes) {}

  FrontEnd& front_end() { return front_end_; }
  const FrontEnd& front_end() const { return front_end_; }
  const Split& split() const { return split_; }

  // Frames of one utterance that update `update` hides; kLargest: as many as any could.
  static constexpr uint32_t kLargest = ~0u;
  std::vector<int32_t> mask(uint32_t row, uint32_t update) const {
    if (update == kLargest) return largest_mask(row);
    Draws draws(static_cast<uint64_t>(config_.run.seed), split_.manifest.rows[row].index, update,
                fnv1a("mask_spans"));
    return span_mask(static_cast<int32_t>(labels_[row].size()), config_.pretrain.mask_prob,
                     static_cast<int32_t>(config_.pretrain.mask_length), kMinMasks, draws);
  }

  // Of these rows, end to end; n: masked frames of the whole update.
  MaskedBatch place(const Batch& rows, uint32_t update, int64_t n) {
    masked_.clear(), frame_labels_.clear(), penalty_weights_.clear();
    const double each = 1 / static_cast<double>(std::max<int64_t>(n, 1));
    int32_t start = 0;
    for (uint32_t row : rows) {
      const std::vector<int32_t> hidden = mask(row, update);
      for (int32_t t : hidden) {
        masked_.push_back(start + t);
        frame_labels_.push_back(labels_[row][t] + kSpecialLabels);
      }
      penalty_weights_.push_back(static_cast<float>(config_.pretrain.feature_penalty *
                                                    static_cast<double>(hidden.size()) * each));
      start += static_cast<int32_t>(labels_[row].size());
    }
    weights_.assign(masked_.size(), static_cast<float>(each));
    return {front_end_.segments(), masked_, frame_labels_, weights_, penalty_weights_};
  }

 private:
  std::vector<int32_t> largest_mask(uint32_t row) const {
    const auto frames = static_cast<int32_t>(labels_[row].size());
    std::vector<int32_t> hidden(most_masked(frames, config_.pretrain.mask_prob,
                                            static_cast<int32_t>(config_.pretrain.mask_length),
                                            kMinMasks));
    std::iota(hidden.begin(), hidden.end(), 0);
    return hidden;
  }

  const RunConfig& config_;
  const Split& split_;
  const Labels& labels_;
  AudioLoader loader_;
  FrontEnd front_end_;
  std::vector<int32_t> masked_, frame_labels_;
  std::vector<float> weights_, penalty_weights_;
};

class MaskedObjective : public Objective {
 public:
  MaskedObjective(const RunConfig& config, const PretrainModel& model, const Targets& targets,
                  const Split& train, const Split& dev, int64_t cache_bytes)
      : config_(config),
        model_(model),
        train_(config, model.encoder, train, targets.train, cache_bytes),
        dev_(config, model.encoder, dev, targets.dev, cache_bytes / 4),
        dev_batches_(BatchPlan(dev.samples(), {kDevBatch}, 0).groups()) {
    const Config& c = model.encoder.config;
    options_.rates = dropout_rates(config, c);
    options_.layerdrop = config.model.layerdrop < 0 ? c.train.layerdrop : config.model.layerdrop;
    options_.recompute = config.train.recompute;
  }

  const std::vector<int64_t>& samples() const override { return train_.front_end().samples(); }
  void prefetch(const Batch& batch) override { train_.front_end().prefetch(batch); }

  void begin_update(const Rng& rng, const Batch& all) override {
    update_masked_ = 0;
    for (uint32_t row : all)
      update_masked_ += static_cast<int64_t>(train_.mask(row, rng.update).size());
  }

  void forward(Tape& t, const Batch& batch) override {
    FrontEnd& front_end = train_.front_end();
    const Var features = front_end.frames(t, batch);
    const uint32_t update = t.ctx.dry ? MaskedSplit::kLargest : t.ctx.rng.update;
    batch_ = train_.place(batch, update, update_masked_);
    losses_ = masked_prediction(t, model_, features, batch_, options_, config_);
    t.loss(losses_.cross_entropy);
    t.loss(losses_.penalty);
    front_end.give_back(batch);
  }

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

  std::string names(const Batch& batch) const override {
    std::string out;
    for (uint32_t i : batch) out += (out.empty() ? "" : " ") + train_.split().manifest.rows[i].id;
    return out;
  }

  void plan_evaluation(Context& ctx) override {
    for_each_dev_batch(ctx, [](const MaskedBatch&, const MaskedLosses&) {});
  }

  Scores evaluate(Context& ctx, const std::string& folder) override {
    int64_t masked = 0, correct = 0;
    double loss = 0;
    for_each_dev_batch(ctx, [&](const MaskedBatch& hidden, const MaskedLosses& losses) {
      ScratchScope host(host_);
      loss += sum_of_losses(hidden.weights, on_host(ctx, losses.cross_entropy, host_));
      correct += count_correct(on_host(ctx, losses.logits, host_), hidden.labels);
      masked += static_cast<int64_t>(hidden.masked.size());
    });
    const double n = static_cast<double>(std::max<int64_t>(masked, 1));
    Scores scores{.values = {{"loss", loss / n}, {"accuracy", static_cast<double>(correct) / n}}};
    scores.smaller_is_better = config_.eval.select == "loss";
    scores.selected = scores.values[scores.smaller_is_better ? 0 : 1].second;
    write_text(folder + "/scores.json",
               fmt::format("{{\"loss\":{:.6g},\"accuracy\":{:.6g}}}\n", scores.values[0].second,
                           scores.values[1].second));
    return scores;
  }

 private:
  void for_each_dev_batch(Context& ctx,
                          const std::function<void(const MaskedBatch&, const MaskedLosses&)>& use) {
    for (const Batch& batch : dev_batches_) {
      FrontEnd& front_end = dev_.front_end();
      if (!ctx.dry) front_end.prefetch(batch);
      ScratchScope acts(ctx.acts), scratch(ctx.scratch);
      Tape tape(ctx, /*recording=*/false);
      const Var features = front_end.frames(tape, batch);
      const MaskedBatch hidden = dev_.place(batch, 0, 1);
      use(hidden, masked_prediction(tape, model_, features, hidden, {}, config_));
      front_end.give_back(batch);
    }
  }

  const RunConfig& config_;
  const PretrainModel& model_;
  MaskedSplit train_, dev_;
  std::vector<Batch> dev_batches_;
  EncodeOptions options_;
  int64_t update_masked_ = 0;
  MaskedBatch batch_;
  MaskedLosses losses_;
  Arena host_;  // copies of what a device computed
};

}  // namespace

std::unique_ptr<Objective> masked_objective(const RunConfig& config, const PretrainModel& model,
                                            const Targets& targets, const Split& train,
                                            const Split& dev, int64_t cache_bytes) {
  return std::make_unique<MaskedObjective>(config, model, targets, train, dev, cache_bytes);
}

}  // namespace sft
