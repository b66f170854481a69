#include "models/pack.h"

#include "engine/transfer.h"

namespace sft {

void WavePack::assign(const Config& config, std::span<const int32_t> lengths,
                      std::span<const int32_t> utterances) {
  for (int32_t n : lengths)
    CHECK(n >= config.receptive(), "pack: {} samples (expected at least {})", n,
          config.receptive());
  stages_.resize(config.conv_kernels.size() + 1);
  stages_[0].assign(lengths, static_cast<int32_t>(config.hop()));
  for (size_t i = 0; i < config.conv_kernels.size(); ++i)
    stages_[i + 1].assign_next(stages_[i], static_cast<int32_t>(config.conv_kernels[i]),
                               static_cast<int32_t>(config.conv_strides[i]));
  const Slots last = stages_.back().view();
  frame_starts_.assign(1, 0);
  frame_rows_.clear();
  for (int b = 0; b < last.batch(); ++b) {
    frame_starts_.push_back(frame_starts_.back() + last.valid[b]);
    for (int32_t t = 0; t < last.valid[b]; ++t) frame_rows_.push_back(last.starts[b] + t);
  }
  utterances_.assign(utterances.begin(), utterances.end());
}

Tensor WavePack::wave(Context& ctx) const {
  const Tensor wave = ctx.activation({samples().rows()});
  zero(ctx, wave);
  return wave;
}

void WavePack::place(const Context& ctx, Tensor wave, int b, std::span<const float> values) const {
  const Slots slots = samples();
  CHECK(static_cast<int64_t>(values.size()) == slots.valid[b],
        "pack: utterance {} has {} samples, expected {}", b, values.size(), slots.valid[b]);
  write(ctx, values.data(), wave.slice(slots.starts[b], slots.valid[b]));
}

}  // namespace sft
