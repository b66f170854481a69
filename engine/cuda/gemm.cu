// gemm.cu: products of activations and weights, through Runtime::gemm, and the bf16 copies of
// weights that they read.
//
// Layout   weights [n] f32 -> copy [n] bf16
// Work     8 elements a thread
// Cost     6n bytes: memory-bound; once per weight that does not train: Adam writes the copy of
// others Numbers  rounded to nearest, ties to even
#include "engine/cuda/gemm.h"

#include <algorithm>

#include "engine/cuda/row.cuh"
#include "engine/cuda/runtime.h"

namespace sft::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void to_bf16_kernel(const float* from, bf16* to, int count, bool aligned) {
  const int64_t i = (blockIdx.x * int64_t{kThreads} + threadIdx.x) * 8;
  if (i >= count) return;
  const int c = static_cast<int>(i);
  const bool whole = aligned && c + 8 <= count;
  store_row(to, c, count, whole, load_row(from, c, count, whole));
}

constexpr uint32_t kCopy = fnv1a("bf16");

// Of matrices with as many rows.
int64_t rows_with_room(std::initializer_list<Tensor> matrices) {
  const Tensor& first = *matrices.begin();
  for (const Tensor& matrix : matrices)
    if (matrix.room != first.room) return first.rows();
  return first.room ? first.room : first.rows();
}

}  // namespace

const void* some_kernel() { return reinterpret_cast<const void*>(to_bf16_kernel); }

Tensor weight_as(Context& ctx, Tensor weight, Dtype dtype) {
  if (!weight || dtype == weight.dtype) return weight;
  const auto [first, bytes] = ctx.prepared.added_with(weight.data);
  const auto* from = static_cast<const float*>(first);
  const int64_t count = std::max(bytes / static_cast<int64_t>(sizeof(float)), weight.count());
  bf16* copy = derived<bf16>(ctx, from, kCopy, count, [&](bf16* to) {
    const bool aligned = reinterpret_cast<uintptr_t>(from) % 16 == 0;
    launch(to_bf16_kernel, dim3(ceil_div(count, 8 * kThreads)), dim3(kThreads), 0,
           ctx.gpu->stream(), from, to, count, aligned);
  });
  return Tensor(copy + (static_cast<const float*>(weight.data) - from), weight.shape, Dtype::bf16,
                Device::cuda);
}

Prepared::Form* bf16_copy(Prepared& prepared, const void* first) {
  return prepared.find(first, kCopy);
}

void matmul(Context& ctx, Tensor x, Tensor weight, Tensor y, const MatmulEnd& end) {
  const int64_t rows = rows_with_room({x, y, end.residual ? end.residual : y});
  ctx.gpu->gemm({.transpose_b = true,
                 .M = rows,
                 .N = weight.shape[0],
                 .K = x.width(),
                 .A = x.data,
                 .lda = x.row_stride,
                 .B = weight.data,
                 .ldb = weight.row_stride,
                 .in = x.dtype,
                 .beta = end.residual ? 1.0f : 0.0f,
                 .from = end.residual.data,
                 .ldfrom = end.residual.row_stride,
                 .bias = end.bias.data,
                 .C = y.data,
                 .ldc = y.row_stride,
                 .out = y.dtype,
                 .padding = rows - x.rows()});
}

void matmul_dx(Context& ctx, Tensor dy, Tensor weight, Grad dx) {
  if (!dx) return;
  const int64_t rows = rows_with_room({dy, dx.to});
  ctx.gpu->gemm({.M = rows,
                 .N = weight.width(),
                 .K = dy.width(),
                 .A = dy.data,
                 .lda = dy.row_stride,
                 .B = weight.data,
                 .ldb = weight.row_stride,
                 .in = dy.dtype,
                 .beta = dx.add ? 1.0f : 0.0f,
                 .C = dx.to.data,
                 .ldc = dx.to.row_stride,
                 .out = dx.to.dtype,
                 .padding = rows - dy.rows()});
}

void matmul_dweight(Context& ctx, Tensor dy, Tensor x, Grad dweight) {
  if (!dweight) return;
  const int64_t terms = rows_with_room({dy, x});
  ctx.gpu->gemm({.transpose_a = true,
                 .M = dy.width(),
                 .N = x.width(),
                 .K = terms,
                 .A = dy.data,
                 .lda = dy.row_stride,
                 .B = x.data,
                 .ldb = x.row_stride,
                 .in = dy.dtype,
                 .beta = dweight.add ? 1.0f : 0.0f,
                 .C = dweight.to.data,
                 .ldc = dweight.to.row_stride,
                 .out = dweight.to.dtype,
                 .padding = terms - dy.rows()});
}

}  // namespace sft::cuda
