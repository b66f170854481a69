// segment_mean.cu: y[b] = sum_t x[t] / T_b over the frames of each utterance.
//
// Layout   x, dx [T, C], y, dy [B, C] f32 or bf16; starts [B + 1] i32
// Work     forward: a block per utterance and stripe of 256 columns (stripes.cuh); its warps take
//          frames in turn, four on their way at a time. Backward: a pass over dx
// Cost     TC elements each way: memory-bound
// Numbers  f32 sums, 8 for each column and then those, in order; the same bits every run
#include "engine/ops/segment_mean.h"

#include "engine/cuda/segments.cuh"
#include "engine/cuda/stripes.cuh"

namespace sft::cuda {
namespace {

constexpr int kAtOnce = 4;  // frames

__device__ float share(const DeviceSegments& segments, int b) {
  const int length = segments.length(b);
  return length ? 1.0f / static_cast<float>(length) : 0.0f;
}

// blockIdx.y is the utterance.
template <class T>
__global__ void segment_mean_kernel(Matrix<T> x, DeviceSegments segments, int C, Matrix<T> y) {
  const int c = stripe_column(), b = static_cast<int>(blockIdx.y);
  const int64_t end = segments.starts[b + 1];
  Float8 sums{};
  for (int64_t first = segments.starts[b] + warp(); first < end && c < C;
       first += kAtOnce * kStripeWarps) {
    Float8 frames[kAtOnce] = {};
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      if (first + i * kStripeWarps < end)
        frames[i] = load_row(x.row(first + i * kStripeWarps), c, C, x.whole);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) add8(sums, frames[i]);
  }
  const float sum = column_sum(sums);
  const int column = stripe_own_column();
  if (column < C) y.row(b)[column] = from_float<T>(sum * share(segments, b));
}

template <class T>
__global__ void segment_mean_back_kernel(Matrix<T> dy, DeviceSegments segments, Matrix<T> dx,
                                         bool add, int64_t rows, int C) {
  const int c = stripe_column();
  for (int64_t r = stripe_first_row(); r < rows && c < C; r += stripe_row_step()) {
    const int b = segments.of(r);
    const float scale = share(segments, b);
    Float8 value = load_row(dy.row(b), c, C, dy.whole);
#pragma unroll
    for (int k = 0; k < 8; ++k) value.v[k] *= scale;
    if (add) add8(value, load_row(dx.row(r), c, C, dx.whole));
    store_row(dx.row(r), c, C, dx.whole, value);
  }
}

}  // namespace

void segment_mean_forward(Context& ctx, Tensor x, const Segments& segments, Tensor y) {
  ScratchScope scratch(ctx.scratch);
  const DeviceSegments list = on_device(ctx, segments);
  if (ctx.dry) return;
  const int64_t C = x.width();
  with_element(x.dtype, [&]<class T>() {
    launch(segment_mean_kernel<T>, dim3(ceil_div(C, kStripeColumns), segments.batch()),
           dim3(kStripeThreads), sizeof(StripeShared), ctx.gpu->stream(), matrix<T>(x), list, C,
           matrix<T>(y));
  });
}

void segment_mean_backward(Context& ctx, Tensor dy, const Segments& segments, Grad dx) {
  ScratchScope scratch(ctx.scratch);
  const DeviceSegments list = on_device(ctx, segments);
  if (ctx.dry) return;
  const int64_t rows = dx.to.rows(), C = dy.width();
  with_element(dy.dtype, [&]<class T>() {
    launch(segment_mean_back_kernel<T>, stripe_grid(rows, C, false), dim3(kStripeThreads), 0,
           ctx.gpu->stream(), matrix<T>(dy), list, matrix<T>(dx.to), dx.add, rows, C);
  });
}

}  // namespace sft::cuda
