// take_rows.cu: rows of a matrix by index, and rows replaced by one embedding.
//
// Layout   x, y, dy, dx [T, C] or [R, C] f32 or bf16; mask_emb, dmask_emb [C] f32; rows [R] i32
// Work     stripes (stripes.cuh): a lane copies 8 columns. Whether a row is masked is found by a
//          search in the ascending list, once per row and warp. dmask_emb: partial sums of the rows
//          that pass by
// Cost     every matrix once: memory-bound
// Numbers  copies are exact; sums f32 in a fixed order; no atomics
#include "engine/ops/take_rows.h"

#include "engine/cuda/lists.h"
#include "engine/cuda/stripes.cuh"

namespace sft::cuda {
namespace {

// y[r] = x[rows[r]]
template <class T>
__global__ void take_rows_kernel(Matrix<T> x, const int32_t* rows, int64_t R, int C, Matrix<T> y) {
  const int c = stripe_column();
  for (int64_t r = stripe_first_row(); r < R && c < C; r += stripe_row_step())
    store_row(y.row(r), c, C, y.whole, load_row(x.row(rows[r]), c, C, x.whole));
}

template <class T>
__global__ void zero_rows_kernel(Matrix<T> x, int64_t rows, int C) {
  const int c = stripe_column();
  for (int64_t r = stripe_first_row(); r < rows && c < C; r += stripe_row_step())
    store_row(x.row(r), c, C, x.whole, Float8{});
}

// to[row] = or += value
template <class T>
__device__ void write_row(Float8 value, const Matrix<T>& to, int64_t row, int c, int C, bool add) {
  if (add) add8(value, load_row(to.row(row), c, C, to.whole));
  store_row(to.row(row), c, C, to.whole, value);
}

// dx[rows[r]] = or += dy[r]
template <class T>
__global__ void take_rows_back_kernel(Matrix<T> dy, const int32_t* rows, int64_t R, int C,
                                      Matrix<T> dx, bool add) {
  const int c = stripe_column();
  for (int64_t r = stripe_first_row(); r < R && c < C; r += stripe_row_step())
    write_row(load_row(dy.row(r), c, C, dy.whole), dx, rows[r], c, C, add);
}

struct RowList {
  const int32_t* rows;  // ascending
  int count;

  __device__ bool has(int64_t row) const {
    int first = 0;
    for (int end = count; first < end;) {
      const int middle = (first + end) / 2;
      if (rows[middle] < row)
        first = middle + 1;
      else
        end = middle;
    }
    return first < count && rows[first] == row;
  }
};

template <class T>
__global__ void mask_spans_kernel(Matrix<T> x, Matrix<float> mask_emb, RowList masked, int64_t rows,
                                  int C, Matrix<T> y) {
  const int c = stripe_column();
  for (int64_t r = stripe_first_row(); r < rows && c < C; r += stripe_row_step()) {
    const Float8 value = masked.has(r) ? load_row(mask_emb.row(0), c, C, mask_emb.whole)
                                       : load_row(x.row(r), c, C, x.whole);
    store_row(y.row(r), c, C, y.whole, value);
  }
}

// dx (may be absent) = or += dy, zero in the masked rows, whose dy is summed.
template <class T>
__global__ void mask_spans_back_kernel(Matrix<T> dy, RowList masked, int64_t rows, int C,
                                       Matrix<T> dx, bool add, float* partial) {
  const int c = stripe_column();
  Float8 sums{};
  for (int64_t r = stripe_first_row(); r < rows && c < C; r += stripe_row_step()) {
    Float8 value = load_row(dy.row(r), c, C, dy.whole);
    if (masked.has(r)) {
      add8(sums, value);
      value = Float8{};
    }
    if (dx.data) write_row(value, dx, r, c, C, add);
  }
  if (partial) write_column_sums(sums, partial, C);
}

template <class Kernel, class... Args>
void launch_stripes(Context& ctx, Kernel kernel, int64_t rows, int64_t C, bool sums,
                    const Args&... args) {
  launch(kernel, stripe_grid(rows, C, sums), dim3(kStripeThreads), sums ? sizeof(StripeShared) : 0,
         ctx.gpu->stream(), args...);
}

RowList row_list(Context& ctx, std::span<const int32_t> rows) {
  return {on_device(ctx, rows), static_cast<int>(rows.size())};
}

}  // namespace

void take_rows_forward(Context& ctx, Tensor x, std::span<const int32_t> rows, Tensor y) {
  ScratchScope scratch(ctx.scratch);
  const int32_t* list = on_device(ctx, rows);
  if (ctx.dry) return;
  const int64_t R = y.rows(), C = x.width();
  with_element(x.dtype, [&]<class T>() {
    launch_stripes(ctx, take_rows_kernel<T>, R, C, false, matrix<T>(x), list, R, C, matrix<T>(y));
  });
}

void take_rows_backward(Context& ctx, Tensor dy, std::span<const int32_t> rows, Grad dx) {
  ScratchScope scratch(ctx.scratch);
  const int32_t* list = on_device(ctx, rows);
  if (ctx.dry) return;
  const int64_t R = dy.rows(), T = dx.to.rows(), C = dx.to.width();
  with_element(dy.dtype, [&]<class E>() {
    const Matrix<E> to = matrix<E>(dx.to);
    if (!dx.add) launch_stripes(ctx, zero_rows_kernel<E>, T, C, false, to, T, C);
    launch_stripes(ctx, take_rows_back_kernel<E>, R, C, false, matrix<E>(dy), list, R, C, to,
                   dx.add);
  });
}

void mask_spans_forward(Context& ctx, Tensor x, Tensor mask_emb, std::span<const int32_t> rows,
                        Tensor y) {
  ScratchScope scratch(ctx.scratch);
  const RowList masked = row_list(ctx, rows);
  if (ctx.dry) return;
  const int64_t T = x.rows(), C = x.width();
  with_element(x.dtype, [&]<class E>() {
    launch_stripes(ctx, mask_spans_kernel<E>, T, C, false, matrix<E>(x), matrix<float>(mask_emb),
                   masked, T, C, matrix<E>(y));
  });
}

void mask_spans_backward(Context& ctx, Tensor dy, std::span<const int32_t> rows, Grad dx,
                         Grad dmask_emb) {
  if (!dx && !dmask_emb) return;
  ScratchScope scratch(ctx.scratch);
  const int64_t T = dy.rows(), C = dy.width();
  const RowList masked = row_list(ctx, rows);
  const ColumnSums sums = column_sums(ctx, T, C, static_cast<bool>(dmask_emb));
  if (ctx.dry) return;
  with_element(dy.dtype, [&]<class E>() {
    launch_stripes(ctx, mask_spans_back_kernel<E>, T, C, sums.partial != nullptr, matrix<E>(dy),
                   masked, T, C, matrix<E>(dx.to), dx.add, sums.partial);
  });
  add_up(ctx, sums, dmask_emb);
}

}  // namespace sft::cuda
