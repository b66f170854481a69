// feature_penalty.cu: loss_b = sum x_tc^2 / (T_b C), dx_tc = weight_b 2 x_tc / (T_b C).
//
// Layout   x, dx [T, C] f32 or bf16, any C; squares of rows [T], losses, weights [B] f32
// Work     forward: a warp per row, then a block per utterance. Backward: a warp per row
// Cost     forward TC elements read, backward read and written (twice read when added to): memory-
//          bound
// Numbers  f32 inside a row, f64 over rows; fixed order: the same bits every run
#include "engine/ops/feature_penalty.h"

#include "engine/cuda/lists.h"
#include "engine/cuda/reduce.cuh"
#include "engine/cuda/row.cuh"
#include "engine/cuda/runtime.h"

namespace sft::cuda {
namespace {

constexpr int kWarps = 8;  // rows of a block

template <class T>
__global__ void row_squares_kernel(Matrix<T> x, float* squares, int64_t rows, int C) {
  const int64_t row = blockIdx.x * int64_t{kWarps} + warp();
  if (row >= rows) return;
  float sum = 0;
  for (int c = lane() * 8; c < C; c += 256)
    for (const float v : load_row(x.row(row), c, C, x.whole).v) sum += v * v;
  sum = warp_sum(sum);
  if (lane() == 0) squares[row] = sum;
}

struct MeanShared {
  double warps[kWarps];
};

__global__ void mean_squares_kernel(const float* squares, const int32_t* starts, int C,
                                    float* losses) {
  const int begin = starts[blockIdx.x], end = starts[blockIdx.x + 1];
  double sum = 0;
  for (int t = begin + static_cast<int>(threadIdx.x); t < end; t += 32 * kWarps) sum += squares[t];
  sum = block_sum(sum, shared_memory<MeanShared>().warps);
  if (threadIdx.x == 0)
    losses[blockIdx.x] = static_cast<float>(sum / (static_cast<double>(end - begin) * C));
}

template <class T>
__global__ void feature_penalty_backward_kernel(Matrix<T> x, const int32_t* starts,
                                                const float* weights, Matrix<T> dx, bool add,
                                                int C) {
  const int b = blockIdx.y, first = starts[b], T_b = starts[b + 1] - first;
  const int t = blockIdx.x * kWarps + warp();
  if (t >= T_b) return;
  const float factor = 2 * weights[b] / (static_cast<float>(T_b) * C);
  for (int c = lane() * 8; c < C; c += 256) {
    const Float8 value = load_row(x.row(first + t), c, C, x.whole);
    Float8 out{};
    if (add) out = load_row(dx.row(first + t), c, C, dx.whole);
#pragma unroll
    for (int k = 0; k < 8; ++k) out.v[k] += factor * value.v[k];
    store_row(dx.row(first + t), c, C, dx.whole, out);
  }
}

}  // namespace

void feature_penalty_forward(Context& ctx, Tensor x, const Segments& segments, Tensor losses) {
  const int64_t T = x.rows();
  const int C = static_cast<int>(x.width());
  ScratchScope scratch(ctx.scratch);
  const int32_t* starts = on_device(ctx, segments.starts);
  float* squares = ctx.temporary({T}).f32();
  if (ctx.dry) return;
  with_element(x.dtype, [&]<class E>() {
    launch(row_squares_kernel<E>, dim3(ceil_div(T, kWarps)), dim3(32 * kWarps), 0,
           ctx.gpu->stream(), matrix<E>(x), squares, T, C);
  });
  launch(mean_squares_kernel, dim3(segments.batch()), dim3(32 * kWarps), sizeof(MeanShared),
         ctx.gpu->stream(), squares, starts, C, losses.f32());
}

void feature_penalty_backward(Context& ctx, Tensor x, const Segments& segments,
                              std::span<const float> weights, Grad dx) {
  ScratchScope scratch(ctx.scratch);
  const int32_t* starts = on_device(ctx, segments.starts);
  const float* factors = on_device(ctx, weights);
  if (ctx.dry) return;
  with_element(x.dtype, [&]<class E>() {
    launch(feature_penalty_backward_kernel<E>,
           dim3(ceil_div(segments.longest(), kWarps), segments.batch()), dim3(32 * kWarps), 0,
           ctx.gpu->stream(), matrix<E>(x), starts, factors, matrix<E>(dx.to), dx.add,
           static_cast<int>(x.width()));
  });
}

}  // namespace sft::cuda
