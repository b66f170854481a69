// Feed-forward part of a transformer layer (Vaswani et al. 2017, arXiv:1706.03762, with GELU):
//
//   y = residual + drop(W2 drop_act(gelu(W1 x + b1)) + b2)
//
//   x [T, C], up.weight W1 [F, C], up.bias [F], down.weight W2 [C, F], down.bias [C],
//   residual [T, C] or empty -> y [T, C]
//
// Saved for the way back: W1 x + b1 alone, [T, F]; GELU is done again there, masks are drawn again.
// On the CPU both directions run in blocks of rows, so that what lies between the products stays
// small and near; the number of GEMMs depends on T only. T = 1600, C = 768, F = 3072: 15.1 GFLOP.
#pragma once

#include "engine/context.h"
#include "engine/segments.h"

namespace sft {

struct FfnWeights {
  Tensor up_weight, up_bias, down_weight, down_bias;
};

struct FfnEpilogue {
  Tensor residual = {};             // [T, C]
  Dropout activation_dropout = {};  // after GELU, [T, F]
  Dropout dropout = {};             // before the residual, [T, C]
  Segments segments = {};           // needed by dropout only
};

struct FfnOut {
  Tensor y;    // [T, C]
  Tensor pre;  // [T, F], saved; empty if not to be kept
};

// keep: the backward will run. The values are the same bits either way.
FfnOut ffn_forward(Context& ctx, Tensor x, const FfnWeights& weights, const FfnEpilogue& epilogue,
                   bool keep);

struct FfnGrads {
  Grad residual, x, up_weight, up_bias, down_weight, down_bias;  // written in this order
};

void ffn_backward(Context& ctx, Tensor dy, Tensor x, const FfnWeights& weights,
                  const FfnEpilogue& epilogue, Tensor pre, const FfnGrads& grads);

namespace cuda {  // ffn.cu
[[gnu::weak]] void ffn_forward(Context& ctx, Tensor x, const FfnWeights& weights,
                               const FfnEpilogue& epilogue, const FfnOut& out);
[[gnu::weak]] void ffn_backward(Context& ctx, Tensor dy, Tensor x, const FfnWeights& weights,
                                const FfnEpilogue& epilogue, Tensor pre, const FfnGrads& grads);
}  // namespace cuda

}  // namespace sft
