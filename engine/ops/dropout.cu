// dropout.cu: y = x * mask / (1 - p), and gradients times a constant: passes of
// engine/cuda/rows.cu. Cost: every matrix once, memory-bound.
#include "engine/ops/dropout.h"

#include "engine/cuda/rows.cuh"

namespace sft::cuda {

void dropout_forward(Context& ctx, Tensor x, Dropout dropout, const Segments& segments, Tensor y) {
  ScratchScope scratch(ctx.scratch);
  const DropoutRows rows = dropout_rows(ctx, dropout, segments, x.width());
  if (!ctx.dry) scale_rows(ctx, {}, x, rows, y);
}

void dropout_backward(Context& ctx, Tensor dy, Dropout dropout, const Segments& segments, Grad dx) {
  ScratchScope scratch(ctx.scratch);
  const DropoutRows rows = dropout_rows(ctx, dropout, segments, dy.width());
  if (!ctx.dry) scale_rows(ctx, dy, rows, dx);
}

void scale_grad_backward(Context& ctx, Tensor dy, float factor, Grad dx) {
  DropoutRows rows;
  rows.place.scale = factor;
  if (!ctx.dry) scale_rows(ctx, dy, rows, dx);
}

}  // namespace sft::cuda
