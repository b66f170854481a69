// GELU, the erf form (Hendrycks & Gimpel 2016, arXiv:1606.08415), where no epilogue holds it:
//
//   y = residual + x Phi(x)
#pragma once

#include "engine/context.h"

namespace sft {

// x [T, C] -> y [T, C]; residual [T, C] or empty.
Tensor gelu_forward(Context& ctx, Tensor x, Tensor residual);
void gelu_backward(Context& ctx, Tensor dy, Tensor x, Grad dresidual, Grad dx);

namespace cuda {  // gelu.cu
[[gnu::weak]] void gelu_forward(Context& ctx, Tensor x, Tensor residual, Tensor y);
[[gnu::weak]] void gelu_backward(Context& ctx, Tensor dy, Tensor x, Grad dresidual, Grad dx);
}  // namespace cuda

}  // namespace sft
