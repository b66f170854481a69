// Logits of wav2vec 2.0's contrastive loss (Baevski et al. 2020, arXiv:2006.11477, section 3.2):
// the own target first, then K targets of other rows.
//
//   s_n0 = cos(y_n, q_n) / temperature,   s_n(1+k) = cos(y_n, q_row(n, k)) / temperature
//
// cos as in cosine_logits.h. A negative that is the same code as the own target cannot be told from
// it: its logit is -infinity, as in fairseq and transformers (which compare vectors; here the picks
// that made them are compared, because equal rows of a product may differ in their last bits).
#pragma once

#include <span>
#include <vector>

#include "engine/context.h"

namespace sft {

// Which rows are the negatives of each. Views.
struct Negatives {
  int64_t each = 0;               // K
  std::span<const int32_t> rows;  // [N K] row(n, k)
  // Where each row is a negative: entries [starts[r], starts[r + 1]) of `uses` are the places n K +
  // k with row(n, k) = r, ascending.
  std::span<const int32_t> starts, uses;  // [N + 1], [N K]
};

// Owns the numbers of Negatives.
class NegativeList {
 public:
  // rows [N K], each in [0, N).
  void assign(int64_t N, int64_t each, std::span<const int32_t> rows);
  Negatives view() const { return {each_, rows_, starts_, uses_}; }

 private:
  int64_t each_ = 0;
  std::vector<int32_t> rows_, starts_, uses_;
};

struct ContrastiveOut {
  Tensor logits;            // [N, 1 + K] f32
  Tensor y_scale, q_scale;  // [N] 1 / max(norm, 1e-8), saved
};

// y, q [N, D]; picks [N, G] i32.
ContrastiveOut contrastive_logits_forward(Context& ctx, Tensor y, Tensor q, Tensor picks,
                                          const Negatives& negatives, float temperature);
// dlogits [N, 1 + K] -> dy, dq [N, D]. What arrives at a logit of -infinity counts as zero.
void contrastive_logits_backward(Context& ctx, Tensor dlogits, Tensor y, Tensor q,
                                 const Negatives& negatives, const ContrastiveOut& out,
                                 float temperature, Grad dy, Grad dq);

namespace cuda {  // contrastive_logits.cu
[[gnu::weak]] void contrastive_logits_forward(Context& ctx, Tensor y, Tensor q, Tensor picks,
                                              const Negatives& negatives, float temperature,
                                              const ContrastiveOut& out);
[[gnu::weak]] void contrastive_logits_backward(Context& ctx, Tensor dlogits, Tensor y, Tensor q,
                                               const Negatives& negatives,
                                               const ContrastiveOut& out, float temperature,
                                               Grad dy, Grad dq);
}  // namespace cuda

}  // namespace sft
