// Adam (Kingma & Ba 2015) and AdamW (Loshchilov & Hutter 2019), one pass over a range of the flat
// buffers:
//
//   g' = clip_factor g + weight_decay p  (Adam)
//   g' = clip_factor g,                  (AdamW; first p -= lr weight_decay p)
//
//   m = beta1 m + (1 - beta1) g'
//   v = beta2 v + (1 - beta2) g'^2
//   p = p - lr / (1 - beta1^step) m / (sqrt(v / (1 - beta2^step)) + eps)
#pragma once

#include "engine/context.h"

namespace sft {

struct AdamStep {
  float lr = 0, beta1 = 0.9f, beta2 = 0.999f, eps = 1e-8f, weight_decay = 0;
  bool decoupled = false;  // AdamW
  float clip_factor = 1;   // multiplies the gradient
  int64_t step = 1;        // of this range: 1 at its first update
};

// An AdamStep with everything that is the same for all elements worked out.
struct AdamScalars {
  float clip, decay, shrink;  // g' = clip g + decay p; p starts from shrink p
  float beta1, one_minus_beta1, beta2, one_minus_beta2;
  float rate, root_scale, eps;  // p -= rate m / (root_scale sqrt(v) + eps)
};

// p, g, m, v: dense f32 of one size; p, m and v are rewritten. Bias corrections in double.
// Memory-bound: 28 bytes per element.
void adam(Context& ctx, Tensor p, Tensor g, Tensor m, Tensor v, const AdamStep& step);

namespace cuda {  // adam.cu
[[gnu::weak]] void adam(Context& ctx, Tensor p, Tensor g, Tensor m, Tensor v,
                        const AdamScalars& scalars);
}  // namespace cuda

}  // namespace sft
