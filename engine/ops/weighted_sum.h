// What a probe reads of a frozen encoder (Yang et al. 2021, arXiv:2105.01051):
//
//   y = sum_l s_l n(h_l),   s = softmax(w);   n: the identity, or layer norm without affine part
//   dw_l = s_l (g_l - sum_k s_k g_k),   g_l = <dy, n(h_l)>
#pragma once

#include <span>

#include "engine/context.h"

namespace sft {

constexpr size_t kMaxStates = 65;  // of 64 layers
constexpr float kStateNormEps = 1e-5f;

struct WeightedSumOut {
  Tensor y;       // [T, C]
  Tensor shares;  // [L] softmax(w), saved
};

// states: L of [T, C] of one type, rows may be strided; w [L]. Every state is read once (twice from
// L1 where it is normalised): 4TC (L + 1) bytes.
WeightedSumOut weighted_sum_forward(Context& ctx, std::span<const Tensor> states, Tensor w,
                                    bool normalize);

// dy [T, C] -> dstates[l] [T, C] each, dw [L]. dw sums over blocks of frames, then in f64.
void weighted_sum_backward(Context& ctx, Tensor dy, std::span<const Tensor> states, Tensor shares,
                           bool normalize, std::span<const Grad> dstates, Grad dw);

namespace cuda {  // weighted_sum.cu; C <= 2048
[[gnu::weak]] void weighted_sum_forward(Context& ctx, std::span<const Tensor> states, Tensor w,
                                        bool normalize, const WeightedSumOut& out);
[[gnu::weak]] void weighted_sum_backward(Context& ctx, Tensor dy, std::span<const Tensor> states,
                                         Tensor shares, bool normalize,
                                         std::span<const Grad> dstates, Grad dw);
}  // namespace cuda

}  // namespace sft
