// What engine/cpu/pos_conv-inl.h and engine/ops/pos_conv.cpp hand each other.
#pragma once

#include <algorithm>
#include <cstdint>

namespace sft::pos {

constexpr int32_t kRows = 96;     // of a chunk: whole tiles of every shape
constexpr int64_t kTaps = 16;     // of the sum at a time: their panels stay in the L2 cache
constexpr int64_t kGap = 16;      // zero frames between utterances, at least the rows of a tile
constexpr int64_t kMaxTile = 48;  // columns of a tile at most

// In fast16: pairs of channels. A chunk's frames of one group have one scale, a column of weights
// has one for `kWords` words of its sum or one tap.
constexpr int64_t kWords = 96;
constexpr float kIntegers = 4095;  // of frames

// Words of a frame of one group, zeros behind its channels; 0: too many channels, f32 then.
constexpr int64_t frame_words(int64_t channels) {
  for (const int64_t words : {24, 32, 40, 64})
    if (channels <= 2 * words) return words;
  return 0;
}
constexpr int64_t block_taps(int64_t words) { return std::max<int64_t>(1, kWords / words); }
constexpr int64_t blocks_of(int64_t taps, int64_t words) {
  return (taps + block_taps(words) - 1) / block_taps(words);
}

// One group of a convolution over frames: out[t] = sum_j W[j] x[t + j - left].
struct Group {
  const float* x;  // [channels, step]: frame by frame, channel after channel
  int64_t step, channels, taps, left;
  const float* panels;  // [tiles of columns][taps][channels][columns of a tile]
};

// The same of words: what a chunk of frames reads, from its first output's first tap on.
struct NarrowGroup {
  const int32_t* window;  // [frames][words]
  float scale;            // of the window
  int64_t words, taps, left;
  const int32_t* panels;  // [tiles of columns][blocks][taps of a block][words][columns of a tile]
  const float* scales;    // [tiles of columns][blocks][columns of a tile]
};

}  // namespace sft::pos
