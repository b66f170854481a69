// gelu.cu: y = residual + x Phi(x), and its way back.
//
// Layout   x, residual, y, dy, dresidual, dx [T, C] f32 or bf16
// Work     a warp per row, 8 columns a lane at a time
// Cost     forward 2TC elements (3TC with a residual), backward 3TC to 6TC: memory-bound
// Numbers  f32 in between
#include "engine/cuda/gelu.cuh"
#include "engine/cuda/row.cuh"
#include "engine/cuda/runtime.h"
#include "engine/ops/gelu.h"

namespace sft::cuda {
namespace {

constexpr int kWarps = 8;

// residual.data may be null.
template <class T>
__global__ void gelu_forward_kernel(Matrix<T> x, Matrix<T> residual, Matrix<T> y, int64_t rows,
                                    int C) {
  const int64_t row = blockIdx.x * int64_t{kWarps} + warp();
  if (row >= rows) return;
  for (int c = lane() * 8; c < C; c += 256) {
    Float8 v = load_row(x.row(row), c, C, x.whole), r{};
    if (residual.data) r = load_row(residual.row(row), c, C, residual.whole);
    for (int k = 0; k < 8; ++k) v.v[k] = r.v[k] + gelu(v.v[k]);
    store_row(y.row(row), c, C, y.whole, v);
  }
}

// A gradient whose data is null is not wanted.
template <class T>
struct Back {
  Matrix<T> dy, x, dresidual, dx;
  bool add_residual, add_x;
};

template <class T>
__device__ void give(const Matrix<T>& to, bool add, int64_t row, int c, int C, Float8 v) {
  if (add) {
    const Float8 before = load_row(to.row(row), c, C, to.whole);
    for (int k = 0; k < 8; ++k) v.v[k] += before.v[k];
  }
  store_row(to.row(row), c, C, to.whole, v);
}

template <class T>
__global__ void gelu_backward_kernel(Back<T> b, int64_t rows, int C) {
  const int64_t row = blockIdx.x * int64_t{kWarps} + warp();
  if (row >= rows) return;
  for (int c = lane() * 8; c < C; c += 256) {
    Float8 d = load_row(b.dy.row(row), c, C, b.dy.whole);
    if (b.dresidual.data) give(b.dresidual, b.add_residual, row, c, C, d);
    if (!b.dx.data) continue;
    const Float8 x = load_row(b.x.row(row), c, C, b.x.whole);
    for (int k = 0; k < 8; ++k) d.v[k] *= gelu_slope(x.v[k]);
    give(b.dx, b.add_x, row, c, C, d);
  }
}

}  // namespace

void gelu_forward(Context& ctx, Tensor x, Tensor residual, Tensor y) {
  const int64_t rows = x.rows();
  const int C = static_cast<int>(x.width());
  with_element(x.dtype, [&]<class T>() {
    launch(gelu_forward_kernel<T>, dim3(ceil_div(rows, kWarps)), dim3(32 * kWarps), 0,
           ctx.gpu->stream(), matrix<T>(x), matrix<T>(residual), matrix<T>(y), rows, C);
  });
}

void gelu_backward(Context& ctx, Tensor dy, Tensor x, Grad dresidual, Grad dx) {
  const int64_t rows = x.rows();
  const int C = static_cast<int>(x.width());
  with_element(x.dtype, [&]<class T>() {
    const Back<T> back{matrix<T>(dy),    matrix<T>(x),  matrix<T>(dresidual.to),
                       matrix<T>(dx.to), dresidual.add, dx.add};
    launch(gelu_backward_kernel<T>, dim3(ceil_div(rows, kWarps)), dim3(32 * kWarps), 0,
           ctx.gpu->stream(), back, rows, C);
  });
}

}  // namespace sft::cuda
