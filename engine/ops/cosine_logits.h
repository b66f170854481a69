// Logits of masked prediction (Hsu et al. 2021, arXiv:2106.07447):
//
//   s_nv = cos(x_n, e_v) / temperature,   cos(a, b) = a b / (max(|a|, 1e-8) max(|b|, 1e-8))
#pragma once

#include "engine/context.h"

namespace sft {

struct CosineLogitsOut {
  Tensor logits;            // [N, V] f32
  Tensor x_scale, e_scale;  // [N], [V] 1 / max(norm, 1e-8), saved
};

// x [N, D], embedding [V, D] f32. One GEMM, then a scaling of rows and columns.
CosineLogitsOut cosine_logits_forward(Context& ctx, Tensor x, Tensor embedding, float temperature);

// dlogits [N, V] -> dx [N, D], dembedding [V, D]. Through the normalisation passes what is
// orthogonal to the vector; all of it where the norm is clamped.
void cosine_logits_backward(Context& ctx, Tensor dlogits, Tensor x, Tensor embedding,
                            const CosineLogitsOut& out, float temperature, Grad dx,
                            Grad dembedding);

namespace cuda {  // cosine_logits.cu
[[gnu::weak]] void cosine_logits_forward(Context& ctx, Tensor x, Tensor embedding,
                                         float temperature, const CosineLogitsOut& out);
[[gnu::weak]] void cosine_logits_backward(Context& ctx, Tensor dlogits, Tensor x, Tensor embedding,
                                          const CosineLogitsOut& out, float temperature, Grad dx,
                                          Grad dembedding);
}  // namespace cuda

}  // namespace sft
