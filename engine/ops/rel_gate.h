// The gate of WavLM's relative position bias (Chen et al. 2022, arXiv:2110.13900), a small GRU-like
// one made of the head's slice of the attention's input, z = x[t, h D ... (h + 1) D):
//
//   w = A z + a [8]    r = sigmoid(w_0 + ... + w_3)    s = sigmoid(w_4 + ... + w_7)
//   gate[h, t] = r (s scale_h - 1) + 2
//
// The rows of A are summed first: two dot products for eight. Nothing is saved: backward computes
// the gate again.
#pragma once

#include "engine/context.h"

namespace sft {

// x [T, C] f32 (bf16 too on CUDA), weight [8, D], bias [8], scale [H], C = H D -> [H, T] f32.
// Cost: 4 T C FLOP.
Tensor rel_gate_forward(Context& ctx, Tensor x, Tensor weight, Tensor bias, Tensor scale);

struct RelGateGrads {
  Grad x, weight, bias, scale;
};

// dgate [H, T] f32; 12 T C FLOP. Sums over frames in chunks of fixed size, then chunk by chunk.
void rel_gate_backward(Context& ctx, Tensor dgate, Tensor x, Tensor weight, Tensor bias,
                       Tensor scale, const RelGateGrads& grads);

namespace cuda {  // rel_gate.cu
[[gnu::weak]] void rel_gate_forward(Context& ctx, Tensor x, Tensor weight, Tensor bias,
                                    Tensor scale, Tensor gate);
[[gnu::weak]] void rel_gate_backward(Context& ctx, Tensor dgate, Tensor x, Tensor weight,
                                     Tensor bias, Tensor scale, const RelGateGrads& grads);
}  // namespace cuda

}  // namespace sft
