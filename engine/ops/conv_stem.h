// The first convolution of a front end, from one channel, with its norm and GELU:
//
//   u[t, c] = bias[c] + sum_k weight[c, 0, k] samples[stride t + k]
//   y = GELU(norm(u))
//
// norm: over the frames of each utterance and channel ("group"), over channels ("layer"), or none.
// u is written nowhere: the statistics of the group norm come from the K x K sums of products of
// the samples (w^T Cov w, in double), and backward computes u again.
#pragma once

#include "engine/context.h"
#include "engine/segments.h"

namespace sft {

enum class StemNorm : uint8_t { none, group, layer };

struct ConvStem {
  int32_t stride = 5;
  StemNorm norm = StemNorm::group;
  float eps = 1e-5f;  // of the norm
};

struct ConvStemOut {
  Tensor y;     // [T0, C], T0 = samples / stride; rows that are not valid are zero
  Tensor mean;  // [B, C], saved; group norm only
  Tensor rstd;  // [B, C]
};

// samples [S] as in `slots`, starts multiples of the stride; weight [C, 1, K], stride <= K <= 16;
// bias [C] or empty; norm_weight, norm_bias [C], empty without a norm. Valid rows of an utterance:
// floor((valid - K) / stride) + 1. Writes y once, in the type ctx.compute(): 4 T0 C bytes as f32.
ConvStemOut conv_stem_forward(Context& ctx, Tensor samples, Tensor weight, Tensor bias,
                              Tensor norm_weight, Tensor norm_bias, const ConvStem& stem,
                              Slots slots);

// dy [T0, C], of which only valid rows are read. There is no gradient of the samples. Under a group
// norm the bias changes nothing and its gradient is zero.
void conv_stem_backward(Context& ctx, Tensor dy, Tensor samples, Tensor weight, Tensor bias,
                        Tensor norm_weight, Tensor norm_bias, Tensor mean, Tensor rstd,
                        const ConvStem& stem, Slots slots, Grad dweight, Grad dbias,
                        Grad dnorm_weight, Grad dnorm_bias);

namespace cuda {  // conv_stem.cu; C <= 512
[[gnu::weak]] void conv_stem_forward(Context& ctx, Tensor samples, Tensor weight, Tensor bias,
                                     Tensor norm_weight, Tensor norm_bias, const ConvStem& stem,
                                     Slots slots, const ConvStemOut& out);
[[gnu::weak]] void conv_stem_backward(Context& ctx, Tensor dy, Tensor samples, Tensor weight,
                                      Tensor bias, Tensor norm_weight, Tensor norm_bias,
                                      Tensor mean, Tensor rstd, const ConvStem& stem, Slots slots,
                                      Grad dweight, Grad dbias, Grad dnorm_weight, Grad dnorm_bias);
}  // namespace cuda

}  // namespace sft
