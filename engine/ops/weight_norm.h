// Weight normalisation over all but the last dimension (Salimans & Kingma 2016, arXiv:1602.07868),
// as the positional convolution has it: one norm per tap j,
//
//   w[o, i, j] = g[j] v[o, i, j] / sqrt(sum_oi v[o, i, j]^2)
//
// Sums in double. Of parameters the result is a derived weight, kept in Prepared and made again
// when g or v changes; otherwise it is an activation.
#pragma once

#include "engine/context.h"

namespace sft {

// v [C, C / G, K]; g of K numbers, any shape.
Tensor weight_norm_forward(Context& ctx, Tensor g, Tensor v);
void weight_norm_backward(Context& ctx, Tensor dw, Tensor g, Tensor v, Grad dg, Grad dv);

namespace cuda {  // weight_norm.cu
[[gnu::weak]] void weight_norm_forward(Context& ctx, Tensor g, Tensor v, float* w);
[[gnu::weak]] void weight_norm_backward(Context& ctx, Tensor dw, Tensor g, Tensor v, Grad dg,
                                        Grad dv);
}  // namespace cuda

}  // namespace sft
