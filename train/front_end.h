// Frames of a batch of utterances: through the convolutions, or, where these are frozen, from what
// was kept of their output, which never changes (there is no dropout in them).
//
// What is kept is always computed from an utterance alone: the same bits whoever shares
// its batch, so a resumed run repeats an uninterrupted one.
#pragma once

#include <memory>

#include "models/encoder.h"
#include "train/frame_store.h"
#include "train/loader.h"
#include "train/trainer.h"

namespace sft {

class FrontEnd {
 public:
  // samples: of every row. Where the convolutions do not train, their output is kept within the
  // budget: of the first rows that fit.
  FrontEnd(const Encoder& encoder, AudioLoader& loader, std::vector<int64_t> samples,
           const FrameBudget& budget);

  // Frames [T, conv width] of these rows, end to end. Batch and segments are good until the next
  // call.
  Var frames(Tape& t, std::span<const uint32_t> rows);
  Segments segments() const { return pack_.frames(); }
  const std::vector<int64_t>& samples() const { return samples_; }
  const FrameStore& store() const { return store_; }
  // The audio that waits beside it at most, when `in_flight` bytes of it are prefetched and the
  // loader keeps `kept` more.
  int64_t audio_bytes(int64_t in_flight, int64_t kept) const;
  // What these rows need, audio or kept frames, begins to come.
  void prefetch(std::span<const uint32_t> rows);
  void give_back(std::span<const uint32_t> rows);

 private:
  Tape& quiet(Context& ctx);
  void copy_frames(Context& ctx, uint32_t row, Tensor to);
  Var convolve(Tape& t, const WavePack& pack, std::span<const uint32_t> rows);
  void compute_alone(Context& ctx, uint32_t row, Tensor to);

  const Encoder& encoder_;
  AudioLoader& loader_;
  std::vector<int64_t> samples_;
  bool frozen_;
  FrameStore store_;             // of the context's type
  std::unique_ptr<Tape> quiet_;  // records nothing
  WavePack pack_, alone_;
  std::vector<int32_t> lengths_, utterances_;
  std::vector<uint32_t> missing_;
};

// What the two keep on disk.
Objective::OnDisk frames_on_disk(const FrontEnd& train, const FrontEnd& dev);

}  // namespace sft
