// Layer norm over the last dimension (Ba et al. 2016, arXiv:1607.06450):
//
//   y = (x - mean) * rstd * weight + bias,   rstd = 1 / sqrt(variance + eps), biased variance
//
// Residual and dropout in front of a norm sit in the epilogue of `linear` and `ffn`.
#pragma once

#include "engine/context.h"

namespace sft {

struct LayerNormOut {
  Tensor y;     // [T, C]
  Tensor mean;  // [T], saved
  Tensor rstd;  // [T], saved
};

// x [T, C], rows may be strided; weight, bias [C], or both empty: no affine part.
// Variance is centred (two passes over a row). Reads x once and writes y once: 8TC bytes.
LayerNormOut layer_norm_forward(Context& ctx, Tensor x, Tensor weight, Tensor bias, float eps);

// dy, x [T, C] -> dx [T, C], dweight, dbias [C]. Sums over frames in a fixed order.
void layer_norm_backward(Context& ctx, Tensor dy, Tensor x, Tensor weight, Tensor mean, Tensor rstd,
                         Grad dx, Grad dweight, Grad dbias);

namespace cuda {  // layer_norm.cu; C <= 2048
[[gnu::weak]] void layer_norm_forward(Context& ctx, Tensor x, Tensor weight, Tensor bias, float eps,
                                      const LayerNormOut& out);
[[gnu::weak]] void layer_norm_backward(Context& ctx, Tensor dy, Tensor x, Tensor weight,
                                       Tensor mean, Tensor rstd, Grad dx, Grad dweight, Grad dbias);
}  // namespace cuda

}  // namespace sft
