// attention_bias.cuh: the gated relative position bias inside the tiles of attention, and the
// gradients of its gate and its table. Included by both twins.
//
// Layout   gate, dgate [H, frames] f32; table, dtable [H, 2 reach + 1] f32
// Work     a block has a window of the table for the rows that it keeps and those of a stage: entry
//          x belongs to streamed row - stationary row + rows - 1, whose distance is key - query, or
//          its negative where queries stream. So the inner loops are the same for both, know
//          nothing of ends, and take 4 bytes of shared memory a distance and not 4 a pair
// Gradient of the table: a group of query rows sums its diagonals. Each is complete once the keys
//          have passed it, and is then written once to the group's own row of [2 reach + 1];
//          distances beyond go into the two ends. attention.cu adds these rows up
// Cost     on tensor cores, of a warp's part of 32 x 32: 4 reads of 16 bytes, 44 multiply-adds and
//          multiplications for the scores; 64 multiply-adds, some 20 accesses of shared memory and
//          24 additions for the gradients, in the kernel that keeps queries alone. Shared memory: 2
//          KB forward, 8.5 KB backward. In global memory H (2 reach + 1) floats for 32 queries
// Numbers  f32, fixed order
#pragma once

#include "engine/cuda/attention.cuh"
#include "engine/cuda/ptx.cuh"

namespace sft::cuda {

struct AttentionBias {
  const float* gate;   // [H, frames]
  const float* table;  // [H, 2 reach + 1]
  int reach;
  float unit;  // sqrt(D): the bias of scores before their scale
  // Of the backward; null: not wanted.
  float* dgate;
  bool dgate_add;
  float* groups;  // [H, group_count, 2 reach + 1]
  int64_t group_count;

  // Of the block's utterance. Where registers are short: gate + first_gate().
  __device__ const float* gates(const AttentionBatch& batch, const AttentionBlock& block) const {
    return gate + block.head * batch.frames + block.start;
  }
  __device__ int first_gate(const AttentionBatch& batch, const AttentionBlock& block) const {
    return block.head * static_cast<int>(batch.frames) + block.start;
  }
  // Entries x of `to` with distance lowest + x, or its negative; copy(to, from).
  template <class Copy>
  __device__ __forceinline__ void window(int head, int lowest, bool negative, int count, float* to,
                                         Copy copy) const {
    const int centre = head * (2 * reach + 1) + reach;
#pragma unroll 1
    for (int x = thread_anew(); x < count; x += static_cast<int>(blockDim.x)) {
      const int distance = negative ? -(lowest + x) : lowest + x;
      copy(to + x, table + (centre + min(max(distance, -reach), reach)));
    }
  }
  // Of the groups of `rows` queries each, in the order of the pack: that of row `first` of
  // utterance b, which starts at `start`. Some stay unused.
  __host__ __device__ static int64_t group(int64_t start, int b, int64_t first, int rows) {
    return start / rows + b + first / rows;
  }
};

// What a thread writes of its group's diagonals.
struct DiagonalSums {
  float* row;  // of the group: [2 reach + 1]; null: not wanted
  int reach;
  float below = 0, above = 0;  // of distances at or beyond the ends

  __device__ DiagonalSums(const AttentionBias& bias, const AttentionBlock& block, int64_t first,
                          int rows)
      : row(bias.groups), reach(bias.reach) {
    if (!row) return;
    const int64_t group = AttentionBias::group(block.start, block.index, first, rows);
    row += (block.head * bias.group_count + group) * (2 * int64_t{reach} + 1);
  }
  __device__ __forceinline__ void emit(int distance, float value) {
    if (distance <= -reach)
      below += value;
    else if (distance >= reach)
      above += value;
    else
      row[reach + distance] = value;
  }
};

}  // namespace sft::cuda
