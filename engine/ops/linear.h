// Linear layer with its epilogue: y = residual + dropout(x W^T + b).
//
//   x [T, K] (rows may be strided), W [N, K], b [N] or empty, residual [T, N] or empty -> y [T, N]
//
// One GEMM on packed weights, whatever the number of utterances; the residual is added inside it,
// unless something drops. Nothing is saved: the mask is drawn again on the way back.
// T = 1600, K = N = 768: 1.9 GFLOP, 12 MB.
#pragma once

#include "engine/context.h"
#include "engine/segments.h"

namespace sft {

struct LinearEpilogue {
  Tensor residual = {};    // [T, N]
  Dropout dropout = {};    // of the product, before the residual
  Segments segments = {};  // needed by dropout only
};

Tensor linear_forward(Context& ctx, Tensor x, Tensor weight, Tensor bias,
                      const LinearEpilogue& epilogue = {});

// dy [T, N] -> dresidual [T, N], dx [T, K], dweight [N, K], dbias [N], written in this order.
void linear_backward(Context& ctx, Tensor dy, Tensor x, Tensor weight,
                     const LinearEpilogue& epilogue, Grad dresidual, Grad dx, Grad dweight,
                     Grad dbias);

namespace cuda {  // linear.cu
[[gnu::weak]] void linear_forward(Context& ctx, Tensor x, Tensor weight, Tensor bias,
                                  const LinearEpilogue& epilogue, Tensor y);
[[gnu::weak]] void linear_backward(Context& ctx, Tensor dy, Tensor x, Tensor weight,
                                   const LinearEpilogue& epilogue, Grad dresidual, Grad dx,
                                   Grad dweight, Grad dbias);
}  // namespace cuda

}  // namespace sft
