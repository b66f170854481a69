// A packed batch of waveforms: where the samples of each utterance lie, where the rows of each
// convolution stage, and which rows of the last one are frames. Of a model that reads log-mel
// energies, in place of the samples: its frames, computed on the host.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/context.h"
#include "engine/segments.h"
#include "models/config.h"

namespace sft {

class WavePack {
 public:
  // lengths: samples of each utterance, at least config.min_samples(); utterances: their indices in
  // the manifest. Memory is kept from one assign to the next.
  void assign(const Config& config, std::span<const int32_t> lengths,
              std::span<const int32_t> utterances);

  Slots samples() const { return stage(0); }
  // Rows before convolution i (0: samples).
  Slots stage(size_t i) const { return stages_[i].view(); }
  Segments frames() const { return {frame_starts_, utterances_}; }
  // [T] rows of the last stage that are frames, in order.
  std::span<const int32_t> frame_rows() const { return frame_rows_; }

  // Room for all slots, zeroed; log-mel: [T, 80] of the type that the context computes in.
  Tensor wave(Context& ctx) const;
  // Copies the samples of utterance b, or what is computed from them, to their place.
  void place(const Context& ctx, Tensor wave, int b, std::span<const float> samples) const;

 private:
  void assign_convolved(const Config& config);

  bool log_mel_ = false;
  std::vector<SlotList> stages_;
  std::vector<int32_t> frame_starts_, frame_rows_, utterances_;
};

}  // namespace sft
