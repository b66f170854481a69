// Passes over a matrix [T, C] in stripes of 256 columns: a lane owns 8 columns, the warps of a
// block take rows in turn. Every access of a warp is 512 (bf16) or 1024 (f32) bytes side by side,
// and sums over rows stay in registers until a block is done.
#pragma once

#include <algorithm>

#include "engine/context.h"
#include "engine/cuda/partials.cuh"
#include "engine/cuda/row.cuh"

namespace sft::cuda {

constexpr int kStripeWarps = 8;
constexpr int kStripeThreads = 32 * kStripeWarps;
constexpr int kStripeColumns = 256;
// Rows that a warp has on their way at a time.
constexpr int kStripeRows = 2;
// Where columns are summed: blocks of all stripes, four for each multiprocessor of an H200. More
// would only be more partial sums.
constexpr int64_t kStripeBlocks = 528;

inline dim3 stripe_grid(int64_t rows, int64_t C, bool sums) {
  const int64_t stripes = ceil_div(C, kStripeColumns);
  const int64_t most = sums ? std::max<int64_t>(1, kStripeBlocks / stripes) : 65535;
  const int64_t wanted = ceil_div(rows, kStripeWarps * kStripeRows);
  return dim3(static_cast<unsigned>(stripes),
              static_cast<unsigned>(std::clamp<int64_t>(wanted, sums ? 1 : 0, most)));
}

__device__ __forceinline__ int stripe_column() {  // the first of this lane's 8
  return static_cast<int>(blockIdx.x) * kStripeColumns + lane() * 8;
}
__device__ __forceinline__ int64_t stripe_first_row() {
  return blockIdx.y * int64_t{kStripeWarps} + warp();
}
__device__ __forceinline__ int64_t stripe_row_step() { return gridDim.y * int64_t{kStripeWarps}; }

// Sums over the rows of [T, C] that the blocks of a pass made: [blocks, C].
struct ColumnSums {
  float* partial = nullptr;  // null: nobody wants them
  int64_t blocks = 0, width = 0;
};

// Of a pass over [rows, C] with stripe_grid(rows, C, true); in scratch, also in a dry step.
inline ColumnSums column_sums(Context& ctx, int64_t rows, int64_t C, bool wanted) {
  if (!wanted) return {};
  const int64_t blocks = stripe_grid(rows, C, true).y;
  return {ctx.temporary({blocks * C}).f32(), blocks, C};
}

inline void add_up(Context& ctx, const ColumnSums& sums, Grad to) {
  if (to) sum_partials(ctx, sums.partial, sums.blocks, sums.width, sums.width, to);
}

struct StripeShared {
  // Element k of a lane stands at k * 36 + lane: no two lanes on one bank, neither here nor there.
  float sums[kStripeWarps][8 * 36];
};

// The column of the stripe whose sum a thread gets: thread i, column i.
__device__ __forceinline__ int stripe_own_column() {
  return static_cast<int>(blockIdx.x * kStripeColumns + threadIdx.x);
}

// What the lanes of a block summed in that column, warp after warp. All threads call it.
__device__ inline float column_sum(const Float8& mine) {
  StripeShared& shared = shared_memory<StripeShared>();
#pragma unroll
  for (int k = 0; k < 8; ++k) shared.sums[warp()][k * 36 + lane()] = mine.v[k];
  __syncthreads();
  const int own = static_cast<int>(threadIdx.x);
  float sum = 0;
  for (int w = 0; w < kStripeWarps; ++w) sum += shared.sums[w][own % 8 * 36 + own / 8];
  return sum;
}

// Those sums into partial [gridDim.y, C].
__device__ inline void write_column_sums(const Float8& mine, float* partial, int C) {
  const float sum = column_sum(mine);
  if (stripe_own_column() < C) partial[blockIdx.y * int64_t{C} + stripe_own_column()] = sum;
}

}  // namespace sft::cuda
