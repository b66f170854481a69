// weight_norm.cu: w[r, j] = g[j] v[r, j] / norm of column j, and its way back.
//
// Layout   v, w, dw, dv [rows, K] f32 (rows = C C / G), g, dg [K] f32
// Work     sums over rows: a lane per column, the warps of a block and kParts blocks share the rows
//          (fixed order); then one thread per column, then one per element
// Cost     forward 12 bytes an element, backward 20: memory-bound; once per update
// Numbers  f64 sums and factors
#include "engine/cuda/lists.h"
#include "engine/cuda/reduce.cuh"
#include "engine/ops/weight_norm.h"

namespace sft::cuda {
namespace {

constexpr int kParts = 64, kWarps = 8, kThreads = 32 * kWarps;

// Of a column; `product` is that of dw and v, backward only.
struct Sums {
  double square, product;
};

struct Shared {
  Sums warps[kWarps][32];
};

// partial [kParts, K]. dw may be null.
__global__ void column_sums_kernel(const float* v, const float* dw, int64_t rows, int K,
                                   Sums* partial) {
  const int column = blockIdx.x * 32 + lane();
  Sums sums{};
  for (int64_t r = blockIdx.y * kWarps + warp(); r < rows && column < K; r += kParts * kWarps) {
    const double x = v[r * K + column];
    sums.square += x * x;
    if (dw) sums.product += x * dw[r * K + column];
  }
  Shared& shared = shared_memory<Shared>();
  shared.warps[warp()][lane()] = sums;
  __syncthreads();
  if (warp() != 0 || column >= K) return;
  for (int w = 1; w < kWarps; ++w) {
    sums.square += shared.warps[w][lane()].square;
    sums.product += shared.warps[w][lane()].product;
  }
  partial[static_cast<int64_t>(blockIdx.y) * K + column] = sums;
}

// w = factor v; dv = factor (dw - v ratio).
struct Column {
  double factor, ratio;
};

__global__ void columns_kernel(const Sums* partial, const float* g, int K, Column* columns,
                               float* dg, bool add) {
  const int j = blockIdx.x * kThreads + threadIdx.x;
  if (j >= K) return;
  Sums sums{};
  for (int part = 0; part < kParts; ++part) {
    sums.square += partial[part * K + j].square;
    sums.product += partial[part * K + j].product;
  }
  const double rstd = 1 / sqrt(sums.square);
  columns[j] = {g[j] * rstd, sums.product / sums.square};
  if (dg) dg[j] = static_cast<float>((add ? dg[j] : 0) + sums.product * rstd);
}

__global__ void scale_kernel(const float* v, const Column* columns, int64_t count, int K,
                             float* w) {
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (i < count) w[i] = static_cast<float>(v[i] * columns[i % K].factor);
}

__global__ void dv_kernel(const float* dw, const float* v, const Column* columns, int64_t count,
                          int K, float* dv, bool add) {
  const int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (i >= count) return;
  const Column column = columns[i % K];
  const double value = column.factor * (dw[i] - v[i] * column.ratio);
  dv[i] = static_cast<float>((add ? dv[i] : 0) + value);
}

// The numbers of all columns, in scratch; null when dry.
const Column* columns_of(Context& ctx, const float* dw, Tensor g, Tensor v, Grad dg) {
  const int64_t K = v.width();
  auto* partial = static_cast<Sums*>(ctx.scratch.take(kParts * K * sizeof(Sums)));
  auto* columns = static_cast<Column*>(ctx.scratch.take(K * sizeof(Column)));
  if (ctx.dry) return nullptr;
  launch(column_sums_kernel, dim3(ceil_div(K, 32), kParts), dim3(kThreads), sizeof(Shared),
         ctx.gpu->stream(), v.f32(), dw, v.rows(), K, partial);
  launch(columns_kernel, dim3(ceil_div(K, kThreads)), dim3(kThreads), 0, ctx.gpu->stream(), partial,
         g.f32(), K, columns, static_cast<float*>(dg.to.data), dg.add);
  return columns;
}

}  // namespace

void weight_norm_forward(Context& ctx, Tensor g, Tensor v, float* w) {
  ScratchScope scratch(ctx.scratch);
  const Column* columns = columns_of(ctx, nullptr, g, v, {});
  if (ctx.dry) return;
  launch(scale_kernel, dim3(ceil_div(v.count(), kThreads)), dim3(kThreads), 0, ctx.gpu->stream(),
         v.f32(), columns, v.count(), v.width(), w);
}

void weight_norm_backward(Context& ctx, Tensor dw, Tensor g, Tensor v, Grad dg, Grad dv) {
  ScratchScope scratch(ctx.scratch);
  const Column* columns = columns_of(ctx, dw.f32(), g, v, dg);
  if (ctx.dry || !dv) return;
  launch(dv_kernel, dim3(ceil_div(v.count(), kThreads)), dim3(kThreads), 0, ctx.gpu->stream(),
         dw.f32(), v.f32(), columns, v.count(), v.width(), dv.to.f32(), dv.add);
}

}  // namespace sft::cuda
