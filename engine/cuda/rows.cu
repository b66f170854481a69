// rows.cu: to = base + x * factors, with a copy of x and the column sums of x * factors where they
// are wanted: the ends of products, and their way back.
//
// Layout   all [T, C] f32 or bf16; partial sums [blocks, C] f32
// Work     stripes (stripes.cuh): a lane owns 8 columns, one Philox call for them where rows drop
// Cost     every matrix once: 2 to 5 TC elements; memory-bound (a Philox call is about 70
//          instructions for 8 elements, a sixth of what an H200 issues while it moves them)
// Numbers  f32 in between; sums in a fixed order; no atomics
#include "engine/cuda/rows.cuh"

#include "engine/cuda/runtime.h"

namespace sft::cuda {
namespace {

// A matrix whose data is null is not there. `old` is what `to`, or `copy`, is added to.
template <class T>
struct RowsPass {
  Matrix<T> x, old, to, copy;
  DropoutRows factors;
  float* partial;
  int64_t rows;
  int C;
};

template <class T>
struct TwoOfRows {
  Float8 x[kStripeRows], old[kStripeRows];

  __device__ __forceinline__ TwoOfRows(const RowsPass<T>& p, int64_t first, int c) {
#pragma unroll
    for (int r = 0; r < kStripeRows; ++r) {
      const int64_t row = first + r * stripe_row_step();
      x[r] = old[r] = Float8{};
      if (row < p.rows) x[r] = load_row(p.x.row(row), c, p.C, p.x.whole);
      if (row < p.rows && p.old.data) old[r] = load_row(p.old.row(row), c, p.C, p.old.whole);
    }
  }
};

// to = old + x * factors
template <class T>
__global__ void __launch_bounds__(kStripeThreads, 4) scale_rows_kernel(RowsPass<T> p) {
  const int c = stripe_column();
  const int64_t step = stripe_row_step();
  for (int64_t first = stripe_first_row(); first < p.rows && c < p.C; first += kStripeRows * step) {
    TwoOfRows<T> in(p, first, c);
#pragma unroll
    for (int r = 0; r < kStripeRows; ++r) {
      const int64_t row = first + r * step;
      if (row >= p.rows) break;
      const Float8 factors = p.factors.factors(p.factors.at(row), c);
#pragma unroll
      for (int k = 0; k < 8; ++k) in.x[r].v[k] = in.old[r].v[k] + in.x[r].v[k] * factors.v[k];
      store_row(p.to.row(row), c, p.C, p.to.whole, in.x[r]);
    }
  }
}

// copy = old + x, to = x * factors, sums of x * factors
template <class T>
__global__ void __launch_bounds__(kStripeThreads, 4) spread_rows_kernel(RowsPass<T> p) {
  const int c = stripe_column();
  const int64_t step = stripe_row_step();
  Float8 sums{};
  for (int64_t first = stripe_first_row(); first < p.rows && c < p.C; first += kStripeRows * step) {
    TwoOfRows<T> in(p, first, c);
#pragma unroll
    for (int r = 0; r < kStripeRows; ++r) {
      const int64_t row = first + r * step;
      if (row >= p.rows) break;
      add8(in.old[r], in.x[r]);
      if (p.copy.data) store_row(p.copy.row(row), c, p.C, p.copy.whole, in.old[r]);
      const Float8 factors = p.factors.factors(p.factors.at(row), c);
#pragma unroll
      for (int k = 0; k < 8; ++k) in.x[r].v[k] *= factors.v[k];
      add8(sums, in.x[r]);
      if (p.to.data) store_row(p.to.row(row), c, p.C, p.to.whole, in.x[r]);
    }
  }
  if (p.partial) write_column_sums(sums, p.partial, p.C);
}

}  // namespace

void scale_rows(Context& ctx, Tensor base, Tensor x, const DropoutRows& factors, Tensor to) {
  const int64_t rows = x.rows(), C = x.width();
  with_element(x.dtype, [&]<class T>() {
    const RowsPass<T> pass{.x = matrix<T>(x),
                           .old = matrix<T>(base),
                           .to = matrix<T>(to),
                           .copy = {},
                           .factors = factors,
                           .partial = nullptr,
                           .rows = rows,
                           .C = static_cast<int>(C)};
    launch(scale_rows_kernel<T>, stripe_grid(rows, C, false), dim3(kStripeThreads), 0,
           ctx.gpu->stream(), pass);
  });
}

void spread_rows(Context& ctx, Tensor dy, const DropoutRows& factors, Grad dresidual,
                 Tensor dproduct, const ColumnSums& sums) {
  if (!dresidual && !dproduct && !sums.partial) return;
  const int64_t rows = dy.rows(), C = dy.width();
  with_element(dy.dtype, [&]<class T>() {
    const RowsPass<T> pass{.x = matrix<T>(dy),
                           .old = matrix<T>(dresidual.add ? dresidual.to : Tensor()),
                           .to = matrix<T>(dproduct),
                           .copy = matrix<T>(dresidual.to),
                           .factors = factors,
                           .partial = sums.partial,
                           .rows = rows,
                           .C = static_cast<int>(C)};
    launch(spread_rows_kernel<T>, stripe_grid(rows, C, sums.partial), dim3(kStripeThreads),
           sums.partial ? sizeof(StripeShared) : 0, ctx.gpu->stream(), pass);
  });
}

}  // namespace sft::cuda
