// Self-attention over a packed batch (Vaswani et al. 2017): per utterance and head
//
//   y_i = sum_j drop(softmax_j(q_i k_j / sqrt(D))) v_j
//
// computed in blocks with a running maximum and sum (Dao et al. 2022, arXiv:2205.14135): the
// [T_b, T_b] scores never exist. The backward rebuilds the probabilities from the saved lse.
#pragma once

#include "engine/context.h"
#include "engine/segments.h"

namespace sft {

struct AttentionOut {
  Tensor y;    // [T, C], saved
  Tensor lse;  // [H, T] log sum_j exp(q_i k_j / sqrt(D)), saved
};

// qkv [T, 3C] f32 (bf16 too on CUDA): q, k and v side by side, head h in columns [h D, (h + 1) D)
// of each; D = C / heads, a multiple of 4, at most 128. Dropout of probabilities: site + head, rows
// of the utterance's [T_b, T_b]. Cost: 4 C sum_b T_b^2 FLOP. Work is divided by (utterance, head,
// rows), longest first.
AttentionOut attention_forward(Context& ctx, Tensor qkv, int heads, Dropout dropout,
                               Segments segments);

// dy [T, C] -> dqkv [T, 3C]. 10 C sum_b T_b^2 FLOP; an (utterance, head) has one owner, so sums
// have a fixed order.
void attention_backward(Context& ctx, Tensor dy, Tensor qkv, const AttentionOut& out, int heads,
                        Dropout dropout, Segments segments, Grad dqkv);

namespace cuda {  // attention.cu
[[gnu::weak]] void attention_forward(Context& ctx, Tensor qkv, int heads, Dropout dropout,
                                     Segments segments, const AttentionOut& out);
[[gnu::weak]] void attention_backward(Context& ctx, Tensor dy, Tensor qkv, const AttentionOut& out,
                                      int heads, Dropout dropout, Segments segments, Grad dqkv);
}  // namespace cuda

}  // namespace sft
