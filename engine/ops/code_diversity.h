// How few of the codes of a product quantiser are in use (wav2vec 2.0, Baevski et al. 2020,
// arXiv:2006.11477, section 3.2), as fairseq and transformers compute it:
//
//   p_gv = mean_n softmax_v(x_ng),   perplexity = sum_g exp(-sum_v p_gv ln(p_gv + 1e-7)),
//   loss = (G V - perplexity) / (G V)
//
// The mean is over all rows: unlike every other loss, this one is of the batch, not of utterances.
#pragma once

#include <span>

#include "engine/context.h"

namespace sft {

struct CodeDiversityOut {
  Tensor loss, perplexity;  // [1] f32; 0 without rows
  Tensor mean;              // [G V] p
  Tensor soft;              // [N, G V] f32 softmax, saved
};

// x [N, G V].
CodeDiversityOut code_diversity_forward(Context& ctx, Tensor x, int groups);
// weight [1]: the gradient is that of weight loss.
void code_diversity_backward(Context& ctx, int groups, std::span<const float> weight,
                             const CodeDiversityOut& out, Grad dx);

namespace cuda {  // code_diversity.cu
[[gnu::weak]] void code_diversity_forward(Context& ctx, Tensor x, int groups,
                                          const CodeDiversityOut& out);
[[gnu::weak]] void code_diversity_backward(Context& ctx, int groups, std::span<const float> weight,
                                           const CodeDiversityOut& out, Grad dx);
}  // namespace cuda

}  // namespace sft
