#include "train/front_end.h"

#include <algorithm>

#include "engine/transfer.h"

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
      cached_(samples_.size()) {
  if (frozen_) reserve_cache(cache_bytes);
}

// Addresses only: memory is taken as rows come by.
void FrontEnd::reserve_cache(int64_t budget) {
  const int64_t row_bytes = encoder_.config.frame_width() * static_cast<int64_t>(sizeof(float));
  for (size_t row = 0; row < samples_.size(); ++row) {
    const int64_t bytes = encoder_.config.frames(samples_[row]) * row_bytes;
    if (cache_.mark() + bytes <= budget) cached_[row].frames = cache_.take(bytes);
  }
}

int64_t FrontEnd::audio_bytes(int64_t in_flight, int64_t kept) const {
  int64_t again = 0;  // of rows whose audio will be wanted again
  for (size_t row = 0; row < samples_.size(); ++row)
    if (!cached_[row].frames) again += samples_[row] * static_cast<int64_t>(sizeof(float));
  return in_flight + std::min(again, kept);
}

Tape& FrontEnd::quiet(Context& ctx) {
  if (!quiet_ || &quiet_->ctx != &ctx) quiet_ = std::make_unique<Tape>(ctx, /*recording=*/false);
  return *quiet_;
}

Var FrontEnd::convolve(Tape& t, const WavePack& pack, std::span<const uint32_t> rows) {
  const Tensor wave = pack.wave(t.ctx);
  if (t.ctx.dry) return encoder_.features(t, wave, pack);
  for (size_t b = 0; b < rows.size(); ++b) {
    const std::span<const float> samples = loader_.get(rows[b]);
    if (static_cast<int64_t>(samples.size()) != samples_[rows[b]])
      fail(Kind::input, "{}: has {} samples now, had {} when the data were checked",
           loader_.manifest().where(loader_.manifest().rows[rows[b]]), samples.size(),
           samples_[rows[b]]);
    pack.place(t.ctx, wave, static_cast<int>(b), samples);
  }
  return encoder_.features(t, wave, pack);
}

void FrontEnd::compute_alone(Context& ctx, uint32_t row, Tensor to) {
  const auto length = static_cast<int32_t>(samples_[row]);
  const auto utterance = static_cast<int32_t>(row);
  alone_.assign(encoder_.config, {&length, 1}, {&utterance, 1});
  ScratchScope acts(ctx.acts);
  const Tensor frames = convolve(quiet(ctx), alone_, {&row, 1});
  copy(ctx, frames, to);
}

void FrontEnd::copy_frames(Context& ctx, uint32_t row, Tensor to) {
  Cached& cached = cached_[row];
  if (cached.filled) {
    write(ctx, cached.frames, to);
    return;
  }
  compute_alone(ctx, row, to);
  if (!cached.frames || ctx.dry) return;
  flush(ctx);
  read(ctx, to, cached.frames);
  cached.filled = true;
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
  const Tensor out =
      t.ctx.activation({segments.total(), encoder_.config.frame_width()}, t.ctx.compute());
  for (size_t b = 0; b < rows.size(); ++b)
    copy_frames(t.ctx, rows[b],
                out.slice(segments.starts[b], segments.length(static_cast<int>(b))));
  return {out};
}

void FrontEnd::prefetch(std::span<const uint32_t> rows) {
  missing_.clear();
  for (uint32_t row : rows)
    if (!cached_[row].filled) missing_.push_back(row);
  loader_.prefetch(missing_);
}

void FrontEnd::give_back(std::span<const uint32_t> rows) {
  for (uint32_t row : rows) loader_.release(row, /*keep=*/!cached_[row].filled);
}

}  // namespace sft
