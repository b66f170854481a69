// What cosines of rows are made of, and their gradient; twin of engine/cpu/cosine-inl.h. A warp per
// row. f32 sums.
#pragma once

#include "engine/context.h"
#include "engine/cuda/reduce.cuh"
#include "engine/cuda/row.cuh"
#include "engine/cuda/runtime.h"

namespace sft::cuda {

constexpr int kCosineWarps = 8;  // rows of a block
constexpr float kLeastNorm = 1e-8f;

template <class T, class U>
__device__ __forceinline__ float row_product(const T* a, bool a_whole, const U* b, bool b_whole,
                                             int D) {
  float sum = 0;
  for (int c = lane() * 8; c < D; c += 256) {
    const Float8 x = load_row(a, c, D, a_whole), y = load_row(b, c, D, b_whole);
#pragma unroll
    for (int k = 0; k < 8; ++k) sum += x.v[k] * y.v[k];
  }
  return warp_sum(sum);
}

template <class T>
__global__ void inverse_norms_kernel(Matrix<T> x, float* scales, int64_t rows, int D) {
  const int64_t row = blockIdx.x * int64_t{kCosineWarps} + warp();
  if (row >= rows) return;
  const float square = row_product(x.row(row), x.whole, x.row(row), x.whole, D);
  if (lane() == 0) scales[row] = 1 / fmaxf(sqrtf(square), kLeastNorm);
}

// Back through x / |x|: dx (+)= g - x (x g) / |x|^2; scale is 1 / |x|, or its bound.
template <class T, class To>
__global__ void project_kernel(Matrix<float> g, Matrix<T> x, const float* scales, Matrix<To> dx,
                               bool add, int64_t rows, int D) {
  const int64_t row = blockIdx.x * int64_t{kCosineWarps} + warp();
  if (row >= rows) return;
  const float scale = scales[row];
  const float product = row_product(x.row(row), x.whole, g.row(row), g.whole, D);
  const float along = scale >= 1 / kLeastNorm ? 0 : scale * scale * product;
  for (int c = lane() * 8; c < D; c += 256) {
    const Float8 vector = load_row(x.row(row), c, D, x.whole);
    const Float8 gradient = load_row(g.row(row), c, D, g.whole);
    Float8 out{};
    if (add) out = load_row(dx.row(row), c, D, dx.whole);
#pragma unroll
    for (int k = 0; k < 8; ++k) out.v[k] += gradient.v[k] - along * vector.v[k];
    store_row(dx.row(row), c, D, dx.whole, out);
  }
}

inline dim3 cosine_blocks(int64_t warps) {
  return dim3(static_cast<unsigned>(ceil_div(warps, kCosineWarps)));
}

// scales_n = 1 / max(|x_n|, 1e-8)
template <class T>
void inverse_norms(Context& ctx, Tensor x, Tensor scales) {
  launch(inverse_norms_kernel<T>, cosine_blocks(x.rows()), dim3(32 * kCosineWarps), 0,
         ctx.gpu->stream(), matrix<T>(x), scales.f32(), x.rows(), static_cast<int>(x.width()));
}

template <class T, class To>
void project(Context& ctx, Tensor g, Tensor x, Tensor scales, Grad dx) {
  launch(project_kernel<T, To>, cosine_blocks(x.rows()), dim3(32 * kCosineWarps), 0,
         ctx.gpu->stream(), matrix<float>(g), matrix<T>(x), scales.f32(), matrix<To>(dx.to), dx.add,
         x.rows(), static_cast<int>(x.width()));
}

}  // namespace sft::cuda
