// Frames of a batch of utterances: through the convolutions, or, where these are frozen, from a
// cache of their output, which never changes (there is no dropout in them).
//
// What goes into the cache is always computed from an utterance alone: the same bits whoever shares
// its batch, so a resumed run repeats an uninterrupted one.
#pragma once

#include "models/encoder.h"
#include "train/loader.h"

namespace sft {

class FrontEnd {
 public:
  // samples: of every row. Where the convolutions do not train, up to cache_bytes of their output
  // are kept.
  FrontEnd(const Encoder& encoder, AudioLoader& loader, std::vector<int64_t> samples,
           int64_t cache_bytes);

  // Frames [T, conv width] of these rows, end to end. Batch and segments are good until the next
  // call.
  Var frames(Tape& t, std::span<const uint32_t> rows);
  Segments segments() const { return pack_.frames(); }
  const std::vector<int64_t>& samples() const { return samples_; }
  int64_t cached_bytes() const { return cached_; }
  // Rows that still need their audio.
  void prefetch(std::span<const uint32_t> rows);
  void give_back(std::span<const uint32_t> rows);

 private:
  Var convolve(Tape& t, const WavePack& pack, std::span<const uint32_t> rows);
  void compute_alone(Context& ctx, uint32_t row, float* to);

  const Encoder& encoder_;
  AudioLoader& loader_;
  std::vector<int64_t> samples_;
  bool frozen_;
  int64_t cache_bytes_, cached_ = 0;
  std::vector<std::vector<float>> cache_;  // by row
  WavePack pack_, alone_;
  std::vector<int32_t> lengths_, utterances_;
  std::vector<uint32_t> missing_;
};

}  // namespace sft
