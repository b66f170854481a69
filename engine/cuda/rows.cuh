// Element-wise passes over the rows of matrices that several CUDA ops share; twin of
// engine/cpu/rows.h. All [T, C] of one type, f32 or bf16; rows may be strided.
#pragma once

#include "engine/cuda/dropout.cuh"
#include "engine/cuda/stripes.cuh"

namespace sft::cuda {

// to = base + x * factors; base may be empty (nothing is added) or `to` itself, and so may x.
void scale_rows(Context& ctx, Tensor base, Tensor x, const DropoutRows& factors, Tensor to);

// grad = or += x * factors.
inline void scale_rows(Context& ctx, Tensor x, const DropoutRows& factors, Grad grad) {
  if (grad) scale_rows(ctx, grad.add ? grad.to : Tensor(), x, factors, grad.to);
}

// The way back through y = residual + product * factors, in one pass over dy:
//   dresidual = or += dy,  dproduct = dy * factors (may be empty),  sums: those of dy * factors
void spread_rows(Context& ctx, Tensor dy, const DropoutRows& factors, Grad dresidual,
                 Tensor dproduct, const ColumnSums& sums);

}  // namespace sft::cuda
