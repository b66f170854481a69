// What the kernels of attention share: how blocks divide a packed batch, and which probabilities
// are dropped. Two twins compute it: attention_fma.cuh and attention_mma.cuh.
#pragma once

#include "engine/cuda/dropout.cuh"
#include "engine/cuda/reduce.cuh"
#include "engine/cuda/row.cuh"

namespace sft::cuda {

constexpr float kLog2e = 1.44269504f, kLn2 = 0.69314718f;

struct AttentionBatch {
  const int32_t* starts;         // [B + 1]
  const int32_t* utterances;     // [B]
  const int32_t* longest_first;  // [B]
  int H, D;
  int64_t frames;  // of the pack
  DropoutPlace dropout;

  __device__ int64_t C() const { return int64_t{H} * D; }
  // Rows of QuerySums, [H, T], start at even numbers: the mma kernel copies two at a time.
  __host__ __device__ int64_t sums_stride() const { return frames + frames % 2; }
  __device__ float scale() const { return rsqrtf(static_cast<float>(D)); }
};

// Block (x, head, rank by length): rows [first, first + rows) of a head of an utterance; none if
// first >= T. Blocks beside each other share keys and values, the longest utterances start first.
// The grid depends on the batch's size and its longest utterance alone.
struct AttentionBlock {
  int index;  // of the utterance, in the batch
  int start;  // of the utterance, in the pack
  int T;      // its frames
  int head;
  int first;
  uint32_t utterance;

  __device__ AttentionBlock(const AttentionBatch& batch, int rows) {
    index = batch.longest_first[blockIdx.z];
    start = batch.starts[index];
    T = batch.starts[index + 1] - start;
    head = static_cast<int>(blockIdx.y);
    first = static_cast<int>(blockIdx.x) * rows;
    utterance = static_cast<uint32_t>(batch.utterances[index]);
  }
};

// Which of a head's probabilities are kept: bits16(words(i, j / 8), j % 8) >= threshold. Little in
// registers: the rest is a kernel's parameter, or in the L1.
struct KeepMask {
  const DropoutPlace& place;
  const AttentionBlock& block;

  __device__ __forceinline__ explicit operator bool() const { return place.threshold != 0; }
  __device__ __forceinline__ PhiloxWords words(int query, int group) const {
    const uint32_t calls = (static_cast<uint32_t>(block.T) + 7) / 8;
    return philox(
        place.rng->seed, static_cast<uint32_t>(query) * calls + static_cast<uint32_t>(group),
        block.utterance, place.rng->update, place.site + static_cast<uint32_t>(block.head));
  }
  // The two values of a word: the lower, the upper.
  __device__ __forceinline__ bool keep_low(uint32_t word) const {
    return (word & 0xFFFFu) >= place.threshold;
  }
  __device__ __forceinline__ bool keep_high(uint32_t word) const {
    return word >= place.threshold << 16;
  }
};

// What the backward knows of a query: log2 of its sum of exponentials (lse in base 2), and
// delta = dy y = sum_j p_j dp_j.
using QuerySums = float2;

}  // namespace sft::cuda
