#include "train/front_end.h"

#include <algorithm>
#include <cstring>

namespace sft {

namespace {

bool convolutions_frozen(const Encoder& encoder) {
  return std::all_of(encoder.conv.layers.begin(), encoder.conv.layers.end(),
                     [](const ConvLayer& layer) { return !layer.weight.var.slot; });
}

}  // namespace

FrontEnd::FrontEnd(const Encoder& encoder, AudioLoader& loader, std::vector<int64_t> samples,
                   int64_t cache_bytes)
    : encoder_(encoder),
      loader_(loader),
      samples_(std::move(samples)),
      frozen_(convolutions_frozen(encoder)),
      cache_bytes_(cache_bytes),
      cache_(samples_.size()) {}

Var FrontEnd::convolve(Tape& t, const WavePack& pack, std::span<const uint32_t> rows) {
  const Tensor wave = pack.wave(t.ctx);
  if (!t.ctx.dry)
    for (size_t b = 0; b < rows.size(); ++b)
      pack.place(wave, static_cast<int>(b), loader_.get(rows[b]));
  return encoder_.features(t, wave, pack);
}

void FrontEnd::compute_alone(Context& ctx, uint32_t row, float* to) {
  const auto length = static_cast<int32_t>(samples_[row]);
  const auto utterance = static_cast<int32_t>(row);
  alone_.assign(encoder_.config, {&length, 1}, {&utterance, 1});
  ScratchScope acts(ctx.acts);
  Tape tape(ctx, /*recording=*/false);
  const Tensor frames = convolve(tape, alone_, {&row, 1});
  std::memcpy(to, frames.data, frames.bytes());
}

Var FrontEnd::frames(Tape& t, std::span<const uint32_t> rows) {
  lengths_.clear(), utterances_.clear();
  for (uint32_t row : rows) {
    lengths_.push_back(static_cast<int32_t>(samples_[row]));
    utterances_.push_back(static_cast<int32_t>(loader_.manifest().rows[row].index));
  }
  pack_.assign(encoder_.config, lengths_, utterances_);
  if (!frozen_) return convolve(t, pack_, rows);
  const Segments segments = pack_.frames();
  const Tensor out = t.ctx.activation({segments.total(), encoder_.config.conv_dims.back()});
  if (t.ctx.dry) {  // as much memory as the longest utterance alone
    const uint32_t longest =
        *std::max_element(rows.begin(), rows.end(),
                          [&](uint32_t a, uint32_t b) { return samples_[a] < samples_[b]; });
    const auto length = static_cast<int32_t>(samples_[longest]);
    const int32_t utterance = 0;
    alone_.assign(encoder_.config, {&length, 1}, {&utterance, 1});
    ScratchScope acts(t.ctx.acts);
    Tape tape(t.ctx, false);
    convolve(tape, alone_, {&longest, 1});
    return {out};
  }
  for (size_t b = 0; b < rows.size(); ++b) {
    const uint32_t row = rows[b];
    const Tensor part = out.slice(segments.starts[b], segments.length(static_cast<int>(b)));
    if (cache_[row].empty())
      compute_alone(t.ctx, row, part.f32());
    else
      std::memcpy(part.data, cache_[row].data(), part.bytes());
    if (cache_[row].empty() && cached_ + part.bytes() <= cache_bytes_) {
      cache_[row].assign(part.f32(), part.f32() + part.count());
      cached_ += part.bytes();
    }
  }
  return {out};
}

void FrontEnd::prefetch(std::span<const uint32_t> rows) {
  missing_.clear();
  for (uint32_t row : rows)
    if (cache_[row].empty()) missing_.push_back(row);
  loader_.prefetch(missing_);
}

void FrontEnd::give_back(std::span<const uint32_t> rows) {
  for (uint32_t row : rows) loader_.release(row);
}

}  // namespace sft
