// Hidden states of a frozen encoder, computed once per utterance (no dropout): what probes are
// trained on, whatever their number.
//
// Pooled: the mean over the frames of every state, one row an utterance. A head that is affine up
// to its own mean over the frames gives the same logits from it. Otherwise all frames are kept.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "models/encoder.h"
#include "train/manifest.h"

namespace sft {

struct StateCache {
  int64_t width = 0;                       // C
  std::vector<int64_t> starts = {0};       // [N + 1] utterance i has rows [starts[i], starts[i+1])
  std::vector<std::vector<float>> states;  // of each state that was chosen: [rows, C]

  size_t utterances() const { return starts.size() - 1; }
  int64_t length(size_t i) const { return starts[i + 1] - starts[i]; }
};

struct StateOptions {
  std::vector<int> states;  // which, ascending
  bool pooled = true;
  Math math = Math::exact;
  int64_t pack_frames = 1500;  // frames that the encoder sees at a time; longer utterances alone
};

// Bytes of the cache of utterances of so many samples.
int64_t cache_bytes(const Config& config, std::span<const int64_t> samples,
                    const StateOptions& options);

// The parameters of `encoder` are bound to `store`, on whose device it runs. samples: of every row,
// as its audio decodes. `done`: utterances so far.
StateCache compute_states(
    const Encoder& encoder, ParamStore& store, const Manifest& manifest,
    std::span<const int64_t> samples, const StateOptions& options,
    const std::function<void(int64_t done)>& progress = [](int64_t) {});

}  // namespace sft
