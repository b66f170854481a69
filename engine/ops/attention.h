// Self-attention over a packed batch (Vaswani et al. 2017): per utterance and head
//
//   y_i = sum_j drop(softmax_j(q_i k_j / sqrt(D) + gate_i table_(j - i))) v_j
//
// computed in blocks with a running maximum and sum (Dao et al. 2022, arXiv:2205.14135): neither
// the [T_b, T_b] scores nor a bias of that size ever exist. The backward rebuilds the probabilities
// from the saved lse. The gated bias is WavLM's (Chen et al. 2022, arXiv:2110.13900).
#pragma once

#include "engine/context.h"
#include "engine/segments.h"

namespace sft {

struct AttentionOut {
  Tensor y;    // [T, C], saved
  Tensor lse;  // [H, T] log sum_j exp(score_ij), saved
};

// Empty: none. Of each head for itself.
struct RelativeBias {
  Tensor gate;   // [H, T] f32, of each query; rel_gate.h
  Tensor table;  // [H, 2R + 1] f32, by key - query from -R to R, its ends also beyond; rel_table.h

  explicit operator bool() const { return static_cast<bool>(table); }
};

struct AttentionGrads {
  Grad qkv, gate, table;
};

// qkv [T, 3C] f32 (bf16 too on CUDA): q, k and v side by side, head h in columns [h D, (h + 1) D)
// of each; D = C / heads, a multiple of 4, at most 128. Dropout of probabilities: site + head, rows
// of the utterance's [T_b, T_b]. Cost: 4 C sum_b T_b^2 FLOP. Work is divided by (utterance, head,
// rows), longest first.
AttentionOut attention_forward(Context& ctx, Tensor qkv, const RelativeBias& bias, int heads,
                               Dropout dropout, Segments segments);

// dy [T, C] -> gradients as their inputs. 10 C sum_b T_b^2 FLOP; an (utterance, head) has one
// owner, and an utterance's part of the table is added in order, so sums have a fixed order.
void attention_backward(Context& ctx, Tensor dy, Tensor qkv, const RelativeBias& bias,
                        const AttentionOut& out, int heads, Dropout dropout, Segments segments,
                        const AttentionGrads& grads);

namespace cuda {  // attention.cu
[[gnu::weak]] void attention_forward(Context& ctx, Tensor qkv, const RelativeBias& bias, int heads,
                                     Dropout dropout, Segments segments, const AttentionOut& out);
[[gnu::weak]] void attention_backward(Context& ctx, Tensor dy, Tensor qkv, const RelativeBias& bias,
                                      const AttentionOut& out, int heads, Dropout dropout,
                                      Segments segments, const AttentionGrads& grads);
}  // namespace cuda

}  // namespace sft
