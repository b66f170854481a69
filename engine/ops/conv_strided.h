// A strided convolution over channels-last rows, with bias, norm over channels and GELU:
//
//   pre[t, o] = bias[o] + sum_jk weight[o, i, j] x[stride t + j, i]
//   y = GELU(layer norm(pre)), or GELU(pre)
//
// Row t reads kernel * Cin numbers that lie side by side, from row stride * t on: a GEMM whose rows
// overlap, computed by our own product (engine/cpu/product-inl.h) since libraries accept no such
// rows.
//
// With three taps, stride 2 and f32 products on the CPU, forward makes the rows 2 s and 2 s + 1 of
// the pack together, by a sixth fewer multiplications (strided_pairs in the .cpp). Slots that start
// at multiples of 4 have the bits that they have alone, and WavePack's do; others have them to
// rounding.
#pragma once

#include "engine/context.h"
#include "engine/segments.h"

namespace sft {

struct ConvStrided {
  int32_t stride = 2;
  float eps = 1e-5f;  // of the norm
  bool keep = false;  // pre, mean and rstd are wanted for backward
};

struct ConvStridedOut {
  Tensor y;           // [T / stride, Cout]; rows that are not valid are zero
  Tensor pre;         // [T / stride, Cout], saved if keep; as y, zero where not valid
  Tensor mean, rstd;  // [T / stride, 1], saved if keep and there is a norm
};

// x [T, Cin] as in `slots`, starts multiples of the stride; weight [Cout, Cin, K], K >= stride;
// bias [Cout] or empty; norm_weight, norm_bias [Cout] or both empty. What lies between slots
// changes no valid row; x needs no spare rows.
ConvStridedOut conv_strided_forward(Context& ctx, Tensor x, Tensor weight, Tensor bias,
                                    Tensor norm_weight, Tensor norm_bias, const ConvStrided& conv,
                                    Slots slots);

// dy [T / stride, Cout], of which only valid rows are read -> dx [T, Cin], zero between slots, and
// the gradients of the parameters.
void conv_strided_backward(Context& ctx, Tensor dy, Tensor x, Tensor weight, Tensor norm_weight,
                           Tensor norm_bias, Tensor pre, Tensor mean, Tensor rstd,
                           const ConvStrided& conv, Slots slots, Grad dx, Grad dweight, Grad dbias,
                           Grad dnorm_weight, Grad dnorm_bias);

namespace cuda {  // conv_strided.cu; with a norm Cout <= 1024
[[gnu::weak]] void conv_strided_forward(Context& ctx, Tensor x, Tensor weight, Tensor bias,
                                        Tensor norm_weight, Tensor norm_bias,
                                        const ConvStrided& conv, Slots slots,
                                        const ConvStridedOut& out);
[[gnu::weak]] void conv_strided_backward(Context& ctx, Tensor dy, Tensor x, Tensor weight,
                                         Tensor norm_weight, Tensor norm_bias, Tensor pre,
                                         Tensor mean, Tensor rstd, const ConvStrided& conv,
                                         Slots slots, Grad dx, Grad dweight, Grad dbias,
                                         Grad dnorm_weight, Grad dnorm_bias);
}  // namespace cuda

}  // namespace sft
