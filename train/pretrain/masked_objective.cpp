#include "train/pretrain/masked_objective.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "engine/io/file.h"
#include "train/span_mask.h"

namespace sft {
namespace {

constexpr int32_t kMinMasks = 2;
constexpr int64_t kKeepAudio = int64_t{256} << 20;  // bytes of decoded audio
constexpr int kDevBatch = 16;

}  // namespace

MaskedSplit::MaskedSplit(const RunConfig& config, const Encoder& encoder, const Split& split,
                         size_t least, const FrameBudget& frames)
    : config_(config),
      split_(split),
      least_(least),
      loader_(split.manifest, kDecodeThreads, kKeepAudio),
      front_end_(encoder, loader_, split.samples(), frames) {
  for (int64_t samples : split.samples())
    frames_.push_back(static_cast<int32_t>(encoder.config.frames(samples)));
}

std::vector<int32_t> MaskedSplit::largest_mask(int32_t frames) const {
  std::vector<int32_t> hidden(most_masked(frames, config_.pretrain.mask_prob,
                                          static_cast<int32_t>(config_.pretrain.mask_length),
                                          kMinMasks));
  std::iota(hidden.begin(), hidden.end(), 0);
  return hidden;
}

std::vector<int32_t> MaskedSplit::drawn_mask(uint32_t row, uint32_t update) const {
  Draws draws(static_cast<uint64_t>(config_.run.seed), utterance(row), update, fnv1a("mask_spans"));
  return span_mask(frames_[row], config_.pretrain.mask_prob,
                   static_cast<int32_t>(config_.pretrain.mask_length), kMinMasks, draws);
}

std::vector<int32_t> MaskedSplit::mask(uint32_t row, uint32_t update) const {
  std::vector<int32_t> frames =
      update == kLargest ? largest_mask(frames_[row]) : drawn_mask(row, update);
  if (frames.size() < least_) frames.clear();
  return frames;
}

HiddenFrames MaskedSplit::hide(const Batch& rows, uint32_t update, int64_t n, const Each& each) {
  masked_.clear(), penalty_weights_.clear();
  const double share = 1 / static_cast<double>(std::max<int64_t>(n, 1));
  int32_t start = 0;
  for (uint32_t row : rows) {
    const std::vector<int32_t> frames = mask(row, update);
    for (int32_t t : frames) masked_.push_back(start + t);
    each(row, frames);
    penalty_weights_.push_back(static_cast<float>(config_.pretrain.feature_penalty *
                                                  static_cast<double>(frames.size()) * share));
    start += frames_[row];
  }
  weights_.assign(masked_.size(), static_cast<float>(share));
  return {front_end_.segments(), masked_, weights_, penalty_weights_};
}

MaskedObjective::MaskedObjective(const RunConfig& config, const Encoder& encoder,
                                 const Split& train, const Split& dev, size_t least,
                                 const FrameBudget& frames)
    : config_(config),
      train_(config, encoder, train, least, frames.part(0.8)),
      dev_(config, encoder, dev, least, frames.part(0.2)),
      dev_batches_(BatchPlan(dev.samples(), {kDevBatch}, 0).groups()) {
  const Config& c = encoder.config;
  options_.rates = dropout_rates(config, c);
  options_.layerdrop = config.model.layerdrop < 0 ? c.train.layerdrop : config.model.layerdrop;
  options_.recompute = config.train.recompute;
}

void MaskedObjective::begin_update(const Rng& rng, const Batch& all) {
  update_masked_ = 0;
  for (uint32_t row : all)
    update_masked_ += static_cast<int64_t>(train_.mask(row, rng.update).size());
}

void MaskedObjective::forward(Tape& t, const Batch& batch) {
  const Var features = train_.front_end().frames(t, batch);
  train_losses(t, features, batch, t.ctx.dry ? MaskedSplit::kLargest : t.ctx.rng.update);
  train_.front_end().give_back(batch);
}

std::string MaskedObjective::names(const Batch& batch) const {
  std::string out;
  for (uint32_t i : batch) out += (out.empty() ? "" : " ") + train_.split().manifest.rows[i].id;
  return out;
}

void MaskedObjective::plan_evaluation(Context& ctx) {
  for_each_dev_batch(ctx, [] {});
}

int64_t MaskedObjective::held_bytes(int64_t batch_samples) const {
  constexpr auto kFloat = static_cast<int64_t>(sizeof(float));
  const FrontEnd &train = train_.front_end(), &dev = dev_.front_end();
  int64_t dev_samples = 0;
  for (const Batch& batch : dev_batches_) {
    int64_t samples = 0;
    for (uint32_t row : batch) samples += dev.samples()[row];
    dev_samples = std::max(dev_samples, samples);
  }
  return train.store().memory_bytes() + dev.store().memory_bytes() +
         train.audio_bytes(2 * batch_samples * kFloat, kKeepAudio) +
         dev.audio_bytes(dev_samples * kFloat, kKeepAudio);
}

void MaskedObjective::for_each_dev_batch(Context& ctx, const std::function<void()>& use) {
  FrontEnd& front_end = dev_.front_end();
  for (const Batch& batch : dev_batches_) {
    if (!ctx.dry) front_end.prefetch(batch);
    ScratchScope acts(ctx.acts), scratch(ctx.scratch);
    Tape tape(ctx, /*recording=*/false);
    dev_losses(tape, front_end.frames(tape, batch), batch);
    use();
    front_end.give_back(batch);
  }
}

Scores MaskedObjective::scored(std::vector<std::pair<std::string, double>> values,
                               const std::string& folder) const {
  std::string text;
  for (const auto& [name, value] : values)
    text += fmt::format("{}\"{}\":{:.6g}", text.empty() ? "{" : ",", name, value);
  write_text(folder + "/scores.json", text + "}\n");
  Scores scores{.values = std::move(values)};
  scores.smaller_is_better = config_.eval.select == "loss";
  scores.selected = scores.values[scores.smaller_is_better ? 0 : 1].second;
  return scores;
}

double sum_of_losses(std::span<const float> weights, Tensor losses) {
  double total = 0;
  for (size_t i = 0; i < weights.size(); ++i)
    total += static_cast<double>(weights[i]) * losses.f32()[i];
  return total;
}

}  // namespace sft
