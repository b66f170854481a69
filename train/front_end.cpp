#include "train/front_end.h"

#include <algorithm>

#include "engine/transfer.h"

namespace sft {

namespace {

bool convolutions_frozen(const Encoder& encoder) {
  return std::all_of(encoder.conv.layers.begin(), encoder.conv.layers.end(),
                     [](const ConvLayer& layer) { return !layer.weight.var.slot; });
}

// As f32; of bf16 half.
std::vector<int64_t> frame_bytes(const Config& config, const std::vector<int64_t>& samples) {
  std::vector<int64_t> bytes;
  for (int64_t n : samples)
    bytes.push_back(config.frames(n) * config.frame_width() * static_cast<int64_t>(sizeof(float)));
  return bytes;
}

}  // namespace

FrontEnd::FrontEnd(const Encoder& encoder, AudioLoader& loader, std::vector<int64_t> samples,
                   const FrameBudget& budget)
    : encoder_(encoder),
      loader_(loader),
      samples_(std::move(samples)),
      frozen_(convolutions_frozen(encoder)),
      store_(frame_bytes(encoder.config, samples_), frozen_ ? budget : FrameBudget{}) {}

int64_t FrontEnd::audio_bytes(int64_t in_flight, int64_t kept) const {
  int64_t again = 0;  // of rows whose audio will be wanted again
  for (uint32_t row = 0; row < samples_.size(); ++row)
    if (!store_.has_place(row)) again += samples_[row] * static_cast<int64_t>(sizeof(float));
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
  if (store_.filled(row)) return store_.get(ctx, row, to);
  compute_alone(ctx, row, to);
  if (store_.has_place(row)) store_.put(ctx, row, to);
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
    if (store_.filled(row))
      store_.will_need(row);
    else
      missing_.push_back(row);
  loader_.prefetch(missing_);
}

void FrontEnd::give_back(std::span<const uint32_t> rows) {
  for (uint32_t row : rows) loader_.release(row, /*keep=*/!store_.filled(row));
}

Objective::OnDisk frames_on_disk(const FrontEnd& train, const FrontEnd& dev) {
  const FrameStore &a = train.store(), &b = dev.store();
  return {a.disk_bytes() + b.disk_bytes(),
          a.disk_failed().empty() ? b.disk_failed() : a.disk_failed()};
}

}  // namespace sft
