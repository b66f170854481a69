// linear.cu: y = residual + dropout(x W^T + b).
//
// Layout   x [T, K], y, dy, residual [T, N] f32 or bf16; W [N, K], b [N] and their gradients f32
// Work     forward: one product that adds bias and residual itself; if something drops, it adds the
//          bias alone and a pass over y does the rest. Backward: one pass over dy gives dresidual,
//          dy times the mask and the partial sums of dbias; then the products
// Cost     bf16, T = 4375, K = N = 768: 5.2 GFLOP a product; 13.5 MB each, and 13.4 MB for a pass
// with
//          dropout (20.2 MB with a residual): memory-bound
// Numbers  f32 sums; bf16 results are rounded once per product and once per pass; the same bits
//          every run
#include "engine/ops/linear.h"

#include "engine/cuda/gemm.h"
#include "engine/cuda/rows.cuh"

namespace sft::cuda {

void linear_forward(Context& ctx, Tensor x, Tensor weight, Tensor bias,
                    const LinearEpilogue& epilogue, Tensor y) {
  ScratchScope scratch(ctx.scratch);
  const Tensor w = weight_as(ctx, weight, x.dtype), b = weight_as(ctx, bias, x.dtype);
  const DropoutRows rows = dropout_rows(ctx, epilogue.dropout, epilogue.segments, y.width());
  if (ctx.dry) return;
  matmul(ctx, x, w, y, {.bias = b, .residual = rows ? Tensor() : epilogue.residual});
  if (rows) scale_rows(ctx, epilogue.residual, y, rows, y);
}

void linear_backward(Context& ctx, Tensor dy, Tensor x, Tensor weight,
                     const LinearEpilogue& epilogue, Grad dresidual, Grad dx, Grad dweight,
                     Grad dbias) {
  const int64_t T = dy.rows(), N = dy.width();
  const bool inner = dx || dweight || dbias;
  ScratchScope scratch(ctx.scratch);
  const Tensor w = dx ? weight_as(ctx, weight, dy.dtype) : weight;
  const DropoutRows rows = dropout_rows(ctx, epilogue.dropout, epilogue.segments, N);
  const bool drops = rows && inner;
  const Tensor dropped = drops ? ctx.temporary({T, N}, dy.dtype) : Tensor();
  const ColumnSums sums = column_sums(ctx, T, N, static_cast<bool>(dbias));
  if (ctx.dry) return;
  spread_rows(ctx, dy, rows, dresidual, dropped, sums);
  const Tensor product = drops ? dropped : dy;
  matmul_dx(ctx, product, w, dx);
  matmul_dweight(ctx, product, x, dweight);
  add_up(ctx, sums, dbias);
}

}  // namespace sft::cuda
