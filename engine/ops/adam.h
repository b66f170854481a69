// Adam (Kingma & Ba 2015) and AdamW (Loshchilov & Hutter 2019), one pass over a range of the flat
// buffers:
//
//   g' = clip_factor g + weight_decay p  (Adam)
//   g' = clip_factor g,                  (AdamW; first p -= lr weight_decay p)
//
//   m = beta1 m + (1 - beta1) g'
//   v = beta2 v + (1 - beta2) g'^2
//   p = p - lr / (1 - beta1^step) m / (sqrt(v / (1 - beta2^step)) + eps)
//
//   clip_factor = min(1, clip / (norm + 1e-6))
//
// The norm, and whether there is an update at all, are known where the gradients lie and nowhere
// else: the host of a device does not wait for them.
#pragma once

#include <limits>

#include "engine/context.h"

namespace sft {

// What the host knows of an update.
struct AdamRule {
  float lr = 0, beta1 = 0.9f, beta2 = 0.999f, eps = 1e-8f, weight_decay = 0;
  bool decoupled = false;                                 // AdamW
  double clip = std::numeric_limits<double>::infinity();  // the largest norm
};

// Dense, of one size, in memory of the context.
struct AdamRange {
  Tensor p, g, m, v;  // [n] f32
  Tensor steps;       // [1] i64: updates that m and v have seen
  Tensor copy;        // [n] bf16, on a device: p rounded to nearest; empty: nobody reads it
};

// norm, loss: [1] f64 in memory of the context. Where both are finite, p, m, v and copy are
// rewritten and steps is one more; else nothing is touched. Bias corrections in double, with the
// same bits on every device. Memory-bound: 28 bytes per element, 30 with the copy.
void adam(Context& ctx, const AdamRange& range, const AdamRule& rule, Tensor norm, Tensor loss);

namespace cuda {  // adam.cu
[[gnu::weak]] void adam(Context& ctx, const AdamRange& range, const AdamRule& rule, Tensor norm,
                        Tensor loss);
}  // namespace cuda

}  // namespace sft
