#include "train/tasks/finetune.h"

#include <algorithm>
#include <set>

#include "engine/glob.h"
#include "engine/ops/add_losses.h"
#include "engine/transfer.h"

namespace sft {

int finetune_range(std::string_view name, const std::vector<std::string>& freeze) {
  for (const std::string& pattern : freeze)
    if (glob_match(pattern, name)) return -1;
  if (name == "mask_emb" || name.starts_with("pretrain.")) return -1;
  return name.starts_with("task.") ? 0 : 1;
}

std::vector<std::string> classes_of(const Manifest& manifest, std::string_view column) {
  std::set<std::string, std::less<>> classes;
  for (const Utterance& row : manifest.rows) classes.emplace(manifest.required(row, column));
  return {classes.begin(), classes.end()};
}

namespace {

SpecAugment augment_of(const RunConfig& config) {
  const auto& a = config.augment;
  return {.time_warp = static_cast<int>(a.time_warp),
          .freq_masks = static_cast<int>(a.freq_masks),
          .freq_width = static_cast<int>(a.freq_width),
          .time_masks = static_cast<int>(a.time_masks),
          .time_width = static_cast<int>(a.time_width)};
}

constexpr int64_t kKeepAudio = int64_t{256} << 20;  // bytes of decoded audio
constexpr size_t kDevBatch = 16;

}  // namespace

FineTuneObjective::FineTuneObjective(const RunConfig& config, const FineTuneModel& model,
                                     const Split& train, const Split& dev, int decode_threads,
                                     const FrameBudget& frames)
    : config_(config),
      model_(model),
      train_split_(train),
      dev_split_(dev),
      train_loader_(train.manifest, decode_threads, kKeepAudio),
      dev_loader_(dev.manifest, decode_threads, kKeepAudio),
      train_(model.encoder, train_loader_, train.samples(), frames.part(0.8)),
      dev_(model.encoder, dev_loader_, dev.samples(), frames.part(0.2)),
      rates_(dropout_rates(config, model.encoder.config)),
      augment_(augment_of(config)) {}

Var FineTuneObjective::logits(Tape& t, FrontEnd& front_end, const Batch& batch, bool training) {
  const Var frames = front_end.frames(t, batch);
  EncodeOptions options;
  if (training) {
    options.rates = rates_;
    options.layerdrop = config_.model.layerdrop;
    options.recompute = config_.train.recompute;
  }
  const Segments segments = front_end.segments();
  Var last = model_.encoder.encode(t, frames, segments, options).last();
  if (training && config_.augment.specaugment) last = spec_augment(t, last, augment_, segments);
  const float rate = training ? static_cast<float>(config_.head.dropout) : 0;
  return model_.task.head(t, last, segments, rate);
}

void FineTuneObjective::forward(Tape& t, const Batch& batch) {
  const Var out_logits = logits(t, train_, batch, true);
  segments_ = train_.segments();
  const Var out = losses(t, out_logits, batch);
  t.loss(out);
  losses_ = out;
  train_.give_back(batch);
}

void FineTuneObjective::add_numbers(Context& ctx, Tensor numbers) {
  add_losses(ctx, losses_, weights_, numbers.slice(0, 1));
}

std::string FineTuneObjective::names(const Batch& batch) const {
  std::string out;
  for (uint32_t i : batch) out += (out.empty() ? "" : " ") + train_split_.manifest.rows[i].id;
  return out;
}

void FineTuneObjective::for_each_dev_batch(
    Context& ctx, const std::function<void(const Batch&, Tensor, Segments)>& use) {
  const std::vector<int64_t>& samples = dev_.samples();
  Batch order(samples.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<uint32_t>(i);
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return samples[a] > samples[b]; });
  const auto batch_at = [&](size_t begin) {
    const size_t end = std::min(begin + kDevBatch, order.size());
    return Batch(order.begin() + static_cast<int64_t>(std::min(begin, end)),
                 order.begin() + static_cast<int64_t>(end));
  };
  if (!ctx.dry) dev_.prefetch(batch_at(0));
  for (size_t begin = 0; begin < order.size(); begin += kDevBatch) {
    if (!ctx.dry) dev_.prefetch(batch_at(begin + kDevBatch));
    const Batch batch = batch_at(begin);
    ScratchScope acts(ctx.acts), scratch(ctx.scratch);
    Tape tape(ctx, /*recording=*/false);
    const Tensor out = logits(tape, dev_, batch, false);
    ScratchScope host(host_);
    use(batch, ctx.dry ? Tensor(out) : on_host(ctx, out, host_), dev_.segments());
    dev_.give_back(batch);
  }
}

int64_t FineTuneObjective::held_bytes(int64_t batch_samples) const {
  constexpr auto kFloat = static_cast<int64_t>(sizeof(float));
  const std::vector<int64_t>& dev = dev_.samples();
  const int64_t longest = *std::max_element(dev.begin(), dev.end());
  const int64_t dev_batch = static_cast<int64_t>(std::min(kDevBatch, dev.size())) * longest;
  return train_.store().memory_bytes() + dev_.store().memory_bytes() +
         train_.audio_bytes(2 * batch_samples * kFloat, kKeepAudio) +
         dev_.audio_bytes(2 * dev_batch * kFloat, kKeepAudio);
}

}  // namespace sft
