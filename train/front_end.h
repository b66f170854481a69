// Frames of a batch of utterances: through the convolutions, or, where these are frozen, from a
// cache of their output, which never changes (there is no dropout in them).
//
// What goes into the cache is always computed from an utterance alone: the same bits whoever shares
// its batch, so a resumed run repeats an uninterrupted one.
#pragma once

#include <memory>

#include "models/encoder.h"
#include "train/loader.h"

namespace sft {

class FrontEnd {
 public:
  // samples: of every row. Where the convolutions do not train, up to cache_bytes of their output
  // are kept: of the first rows that fit.
  FrontEnd(const Encoder& encoder, AudioLoader& loader, std::vector<int64_t> samples,
           int64_t cache_bytes);

  // Frames [T, conv width] of these rows, end to end. Batch and segments are good until the next
  // call.
  Var frames(Tape& t, std::span<const uint32_t> rows);
  Segments segments() const { return pack_.frames(); }
  const std::vector<int64_t>& samples() const { return samples_; }
  // What the cache will hold in the end, and the audio that waits beside it at most, when
  // `in_flight` bytes of it are prefetched and the loader keeps `kept` more.
  int64_t cache_bytes() const { return cache_.mark(); }
  int64_t audio_bytes(int64_t in_flight, int64_t kept) const;
  // Rows that still need their audio.
  void prefetch(std::span<const uint32_t> rows);
  void give_back(std::span<const uint32_t> rows);

 private:
  Tape& quiet(Context& ctx);
  void copy_frames(Context& ctx, uint32_t row, Tensor to);
  void reserve_cache(int64_t budget);
  Var convolve(Tape& t, const WavePack& pack, std::span<const uint32_t> rows);
  void compute_alone(Context& ctx, uint32_t row, Tensor to);

  const Encoder& encoder_;
  AudioLoader& loader_;
  std::vector<int64_t> samples_;
  bool frozen_;
  struct Cached {
    void* frames = nullptr;  // on the host, of the context's type; null: no room for this row
    bool filled = false;
  };
  Arena cache_;
  std::vector<Cached> cached_;   // by row
  std::unique_ptr<Tape> quiet_;  // records nothing
  WavePack pack_, alone_;
  std::vector<int32_t> lengths_, utterances_;
  std::vector<uint32_t> missing_;
};

}  // namespace sft
