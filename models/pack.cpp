#include "models/pack.h"

#include "engine/audio/features.h"
#include "engine/formats/numbers.h"
#include "engine/transfer.h"

namespace sft {
namespace {

// What slots are multiples of. A convolution with three taps and stride 2 makes its rows in pairs
// (engine/ops/conv_strided.h): they begin at an even row, so that no bit depends on batch mates.
int64_t slot_samples(const Config& config) {
  int64_t later = 1;  // product of the strides behind a convolution
  for (size_t i = config.conv_kernels.size(); i-- > 0; later *= config.conv_strides[i])
    if (config.conv_kernels[i] == 3 && config.conv_strides[i] == 2 && later % 2 == 1)
      return 2 * config.hop();
  return config.hop();
}

}  // namespace

void WavePack::assign(const Config& config, std::span<const int32_t> lengths,
                      std::span<const int32_t> utterances) {
  for (int32_t n : lengths)
    CHECK(n >= config.min_samples(), "pack: {} samples (expected at least {})", n,
          config.min_samples());
  log_mel_ = config.log_mel();
  stages_.resize(config.conv_kernels.size() + 1);
  stages_[0].assign(lengths, static_cast<int32_t>(slot_samples(config)));
  frame_starts_.assign(1, 0);
  frame_rows_.clear();
  if (log_mel_)
    for (int32_t n : lengths)
      frame_starts_.push_back(frame_starts_.back() + static_cast<int32_t>(config.frames(n)));
  else
    assign_convolved(config);
  utterances_.assign(utterances.begin(), utterances.end());
}

void WavePack::assign_convolved(const Config& config) {
  for (size_t i = 0; i < config.conv_kernels.size(); ++i)
    stages_[i + 1].assign_next(stages_[i], static_cast<int32_t>(config.conv_kernels[i]),
                               static_cast<int32_t>(config.conv_strides[i]));
  const Slots last = stages_.back().view();
  for (int b = 0; b < last.batch(); ++b) {
    frame_starts_.push_back(frame_starts_.back() + last.valid[b]);
    for (int32_t t = 0; t < last.valid[b]; ++t) frame_rows_.push_back(last.starts[b] + t);
  }
}

Tensor WavePack::wave(Context& ctx) const {
  const Tensor wave = log_mel_ ? ctx.activation({frames().total(), LogMel80::kBins}, ctx.compute())
                               : ctx.activation({samples().rows()});
  zero(ctx, wave);
  return wave;
}

namespace {

void place_log_mel(const Context& ctx, Tensor rows, std::span<const float> samples) {
  static const LogMel80 log_mel;
  const std::vector<float> values = log_mel(samples);
  std::vector<std::byte> bytes(rows.bytes());
  from_f32(values.data(), rows.dtype, bytes.data(), rows.count());
  write(ctx, bytes.data(), rows);
}

}  // namespace

void WavePack::place(const Context& ctx, Tensor wave, int b, std::span<const float> values) const {
  const Slots slots = samples();
  CHECK(static_cast<int64_t>(values.size()) == slots.valid[b],
        "pack: utterance {} has {} samples, expected {}", b, values.size(), slots.valid[b]);
  if (log_mel_) return place_log_mel(ctx, wave.slice(frame_starts_[b], frames().length(b)), values);
  write(ctx, values.data(), wave.slice(slots.starts[b], slots.valid[b]));
}

}  // namespace sft
