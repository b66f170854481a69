// Sums over the rows of N matrices that are computed on the way: gradients of biases and norms.
#pragma once

#include "engine/cuda/runtime.h"
#include "engine/cuda/stripes.cuh"

namespace sft::cuda {

// partial [N, gridDim.y, C].
//   void Source::operator()(int64_t row, int column, Float8 (&sums)[N]): adds 8 columns of a row.
template <int N, class Source>
__global__ void __launch_bounds__(kStripeThreads)
    sum_columns_kernel(Source source, int64_t rows, int C, float* partial) {
  const int c = stripe_column();
  Float8 sums[N] = {};
  for (int64_t row = stripe_first_row(); row < rows && c < C; row += stripe_row_step())
    source(row, c, sums);
#pragma unroll
  for (int n = 0; n < N; ++n) {
    if (n > 0) __syncthreads();
    write_column_sums(sums[n], partial + n * gridDim.y * int64_t{C}, C);
  }
}

// to[n] = the sums of matrix n, where wanted. Takes scratch; also in a dry step.
template <int N, class Source>
void sum_columns(Context& ctx, const Source& source, int64_t rows, int64_t C, const Grad (&to)[N]) {
  ScratchScope scratch(ctx.scratch);
  const dim3 grid = stripe_grid(rows, C, true);
  float* partial = ctx.temporary({N * grid.y * C}).f32();
  if (ctx.dry) return;
  launch(sum_columns_kernel<N, Source>, grid, dim3(kStripeThreads), sizeof(StripeShared),
         ctx.gpu->stream(), source, rows, static_cast<int>(C), partial);
  for (int n = 0; n < N; ++n) add_up(ctx, {partial + n * grid.y * C, grid.y, C}, to[n]);
}

}  // namespace sft::cuda
