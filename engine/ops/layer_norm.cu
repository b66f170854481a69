// layer_norm.cu: y = (x - mean) * rstd * weight + bias, over the last dimension.
//
// Layout   x, y, dy, dx [T, C] f32 or bf16, C <= 2048; mean, rstd [T], weight, bias [C] f32;
//          dweight, dbias [C] f32
// Work     a warp per row, the row stays in registers: mean, then centred variance, no reload. dx
// the
//          same. dweight, dbias: a lane owns 8 columns; a sum per block of rows, then one ordered
//          sum over those (in one kernel with dx they would need 167 registers a thread, C = 1024)
// Cost     forward 2TC elements + 8T bytes; dx 3TC (4TC when added to), dweight 2TC: memory-bound
// Numbers  f32 accumulation; the same bits every run; no atomics
#include <algorithm>

#include "engine/cuda/partials.cuh"
#include "engine/cuda/reduce.cuh"
#include "engine/cuda/row.cuh"
#include "engine/cuda/runtime.h"
#include "engine/ops/layer_norm.h"

namespace sft::cuda {
namespace {

constexpr int kWarps = 8;       // rows that a block works on at a time
constexpr int kPartials = 256;  // at most so many partial sums of dweight and dbias

struct Affine {
  const float* weight;  // null: none
  const float* bias;
};

// V: vectors of 8 elements that a lane holds.
template <class T, int V>
__global__ void layer_norm_forward_kernel(Matrix<T> x, Affine affine, float eps, Matrix<T> y,
                                          float* mean, float* rstd, int64_t rows, int C) {
  const int lane = cuda::lane();
  const int64_t row = blockIdx.x * int64_t{kWarps} + cuda::warp();
  if (row >= rows) return;
  Float8 values[V];
  float sum = 0;
  for (int i = 0; i < V; ++i) {
    values[i] = load_row(x.row(row), (i * 32 + lane) * 8, C, x.whole && (i * 32 + lane) * 8 < C);
    for (float value : values[i].v) sum += value;
  }
  const float m = warp_sum(sum) / C;
  float squares = 0;
  for (int i = 0; i < V; ++i)
    for (int k = 0; k < 8; ++k) {
      const float d = (i * 32 + lane) * 8 + k < C ? values[i].v[k] - m : 0;
      squares += d * d;
    }
  const float r = rsqrtf(warp_sum(squares) / C + eps);
  for (int i = 0; i < V; ++i) {
    const int c = (i * 32 + lane) * 8;
    if (c >= C) break;
    for (int k = 0; k < 8; ++k) {
      values[i].v[k] = (values[i].v[k] - m) * r;
      if (affine.weight && c + k < C)
        values[i].v[k] = values[i].v[k] * affine.weight[c + k] + affine.bias[c + k];
    }
    store_row(y.row(row), c, C, y.whole, values[i]);
  }
  if (lane == 0) mean[row] = m, rstd[row] = r;
}

template <class T, int V>
__global__ void layer_norm_dx_kernel(Matrix<T> dy, Matrix<T> x, const float* weight,
                                     const float* mean, const float* rstd, Matrix<T> dx, bool add,
                                     int64_t rows, int C) {
  const int lane = cuda::lane();
  const int64_t row = blockIdx.x * int64_t{kWarps} + cuda::warp();
  if (row >= rows) return;
  const float m = mean[row], r = rstd[row];
  Float8 g[V] = {}, normed[V] = {};
  float sum = 0, dot = 0;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const int c = (i * 32 + lane) * 8;
    if (c < C) {
      g[i] = load_row(dy.row(row), c, C, dy.whole);
      normed[i] = load_row(x.row(row), c, C, x.whole);
    }
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      normed[i].v[k] = c + k < C ? (normed[i].v[k] - m) * r : 0;
      if (weight && c + k < C) g[i].v[k] *= weight[c + k];
      sum += g[i].v[k];
      dot += g[i].v[k] * normed[i].v[k];
    }
  }
  sum = warp_sum(sum) / C, dot = warp_sum(dot) / C;
#pragma unroll
  for (int i = 0; i < V; ++i) {
    const int c = (i * 32 + lane) * 8;
    if (c < C) {
      Float8 out{};
      if (add) out = load_row(dx.row(row), c, C, dx.whole);
#pragma unroll
      for (int k = 0; k < 8; ++k) out.v[k] += r * (g[i].v[k] - sum - normed[i].v[k] * dot);
      store_row(dx.row(row), c, C, dx.whole, out);
    }
  }
}

struct DweightShared {
  float dweight[kWarps][256];
  float dbias[kWarps][256];
};

// A lane owns 8 columns, warps take rows in turn; partial [gridDim.y, 2C]: what the rows of each
// block add to dweight and dbias.
template <class T>
__global__ void layer_norm_dweight_kernel(Matrix<T> dy, Matrix<T> x, const float* mean,
                                          const float* rstd, float* partial, int64_t rows, int C) {
  const int c = (blockIdx.x * 32 + lane()) * 8;
  Float8 dweight{}, dbias{};
  for (int64_t row = blockIdx.y * int64_t{kWarps} + warp(); row < rows && c < C;
       row += gridDim.y * int64_t{kWarps}) {
    const Float8 g = load_row(dy.row(row), c, C, dy.whole);
    const Float8 value = load_row(x.row(row), c, C, x.whole);
    for (int k = 0; k < 8; ++k) {
      dweight.v[k] += g.v[k] * (value.v[k] - mean[row]) * rstd[row];
      dbias.v[k] += g.v[k];
    }
  }
  DweightShared& shared = shared_memory<DweightShared>();
  for (int k = 0; k < 8; ++k) {
    shared.dweight[warp()][lane() * 8 + k] = dweight.v[k];
    shared.dbias[warp()][lane() * 8 + k] = dbias.v[k];
  }
  __syncthreads();
  const int own = blockIdx.x * 256 + threadIdx.x;  // a thread, a column
  if (own >= C) return;
  float sum_weight = 0, sum_bias = 0;
  for (int w = 0; w < kWarps; ++w) {
    sum_weight += shared.dweight[w][threadIdx.x];
    sum_bias += shared.dbias[w][threadIdx.x];
  }
  partial[blockIdx.y * 2 * int64_t{C} + own] = sum_weight;
  partial[blockIdx.y * 2 * int64_t{C} + C + own] = sum_bias;
}

}  // namespace

void layer_norm_forward(Context& ctx, Tensor x, Tensor weight, Tensor bias, float eps,
                        const LayerNormOut& out) {
  const int64_t rows = x.rows();
  const int C = static_cast<int>(x.width());
  const Affine affine{static_cast<const float*>(weight.data), static_cast<const float*>(bias.data)};
  with_element(x.dtype, [&]<class T>() {
    const auto kernel =
        C <= 1024 ? layer_norm_forward_kernel<T, 4> : layer_norm_forward_kernel<T, 8>;
    launch(kernel, dim3(ceil_div(rows, kWarps)), dim3(32 * kWarps), 0, ctx.gpu->stream(),
           matrix<T>(x), affine, eps, matrix<T>(out.y), out.mean.f32(), out.rstd.f32(), rows, C);
  });
}

void layer_norm_backward(Context& ctx, Tensor dy, Tensor x, Tensor weight, Tensor mean, Tensor rstd,
                         Grad dx, Grad dweight, Grad dbias) {
  const int64_t rows = x.rows();
  const int C = static_cast<int>(x.width());
  const int64_t blocks = std::clamp<int64_t>(ceil_div(rows, 32), 1, kPartials);
  ScratchScope scratch(ctx.scratch);
  const bool sums = dweight || dbias;
  float* partial = sums ? ctx.temporary({blocks * 2 * C}).f32() : nullptr;
  if (ctx.dry) return;
  with_element(x.dtype, [&]<class T>() {
    const auto dx_kernel = C <= 1024 ? layer_norm_dx_kernel<T, 4> : layer_norm_dx_kernel<T, 8>;
    if (dx)
      launch(dx_kernel, dim3(ceil_div(rows, kWarps)), dim3(32 * kWarps), 0, ctx.gpu->stream(),
             matrix<T>(dy), matrix<T>(x), static_cast<const float*>(weight.data), mean.f32(),
             rstd.f32(), matrix<T>(dx.to), dx.add, rows, C);
    if (sums)
      launch(layer_norm_dweight_kernel<T>, dim3(ceil_div(C, 256), blocks), dim3(32 * kWarps),
             sizeof(DweightShared), ctx.gpu->stream(), matrix<T>(dy), matrix<T>(x), mean.f32(),
             rstd.f32(), partial, rows, C);
  });
  if (dweight) sum_partials(ctx, partial, blocks, 2 * C, C, dweight);
  if (dbias) sum_partials(ctx, partial + C, blocks, 2 * C, C, dbias);
}

}  // namespace sft::cuda
