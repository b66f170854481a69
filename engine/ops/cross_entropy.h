// Softmax cross-entropy of rows of logits:
//
//   loss_n = log sum_v exp(x_nv) - x_n,label(n)
//   dx_nv  = weight_n (softmax(x_n)_v - [v = label(n)])
#pragma once

#include <span>

#include "engine/context.h"

namespace sft {

struct CrossEntropyOut {
  Tensor losses;  // [N], without the weights
  Tensor lse;     // [N] log sum exp, saved
};

// logits [N, V], rows may be strided; labels [N] in [0, V): another label is Kind::input, before
// anything is computed.
CrossEntropyOut cross_entropy_forward(Context& ctx, Tensor logits, std::span<const int32_t> labels);

// weights [N]: the gradient is that of sum_n weight_n loss_n.
void cross_entropy_backward(Context& ctx, Tensor logits, std::span<const int32_t> labels,
                            std::span<const float> weights, Tensor lse, Grad dlogits);

namespace cuda {  // cross_entropy.cu
[[gnu::weak]] void cross_entropy_forward(Context& ctx, Tensor logits,
                                         std::span<const int32_t> labels,
                                         const CrossEntropyOut& out);
[[gnu::weak]] void cross_entropy_backward(Context& ctx, Tensor logits,
                                          std::span<const int32_t> labels,
                                          std::span<const float> weights, Tensor lse, Grad dlogits);
}  // namespace cuda

}  // namespace sft
