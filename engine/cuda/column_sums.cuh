// Sums over the rows of N matrices that are computed on the way: gradients of biases and norms.
#pragma once

#include <algorithm>

#include "engine/cuda/partials.cuh"
#include "engine/cuda/row.cuh"
#include "engine/cuda/runtime.h"

namespace sft::cuda {

constexpr int kSumWarps = 8;

template <int N>
struct ColumnSumsShared {
  float sums[N][kSumWarps][256];
};

// A lane owns 8 columns, warps take rows in turn; partial [gridDim.y, N, C].
//   void Source::operator()(int64_t row, int column, Float8 (&sums)[N]): adds those of a row.
template <int N, class Source>
__global__ void column_sums_kernel(Source source, int64_t rows, int C, float* partial) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, c = (blockIdx.x * 32 + lane) * 8;
  Float8 sums[N] = {};
  for (int64_t row = blockIdx.y * int64_t{kSumWarps} + warp; row < rows && c < C;
       row += gridDim.y * int64_t{kSumWarps})
    source(row, c, sums);
  auto& shared = shared_memory<ColumnSumsShared<N>>();
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int k = 0; k < 8; ++k) shared.sums[n][warp][lane * 8 + k] = sums[n].v[k];
  __syncthreads();
  const int own = blockIdx.x * 256 + threadIdx.x;
  if (own >= C) return;
  for (int n = 0; n < N; ++n) {
    float sum = 0;
    for (int w = 0; w < kSumWarps; ++w) sum += shared.sums[n][w][threadIdx.x];
    partial[(blockIdx.y * int64_t{N} + n) * C + own] = sum;
  }
}

// to[n] = the sums of matrix n, where wanted. Takes scratch; also in a dry step.
template <int N, class Source>
void column_sums(Context& ctx, const Source& source, int64_t rows, int64_t C, const Grad (&to)[N]) {
  ScratchScope scratch(ctx.scratch);
  const int64_t blocks = std::clamp<int64_t>(ceil_div(rows, 32), 1, 256);
  float* partial = ctx.temporary({blocks * N * C}).f32();
  if (ctx.dry) return;
  launch(column_sums_kernel<N, Source>, dim3(ceil_div(C, 256), blocks), dim3(32 * kSumWarps),
         sizeof(ColumnSumsShared<N>), ctx.gpu->stream(), source, rows, static_cast<int>(C),
         partial);
  for (int n = 0; n < N; ++n)
    if (to[n]) sum_partials(ctx, partial + n * C, blocks, N * C, C, to[n]);
}

}  // namespace sft::cuda
