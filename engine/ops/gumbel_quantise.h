// The product quantiser of wav2vec 2.0 (Baevski et al. 2020, arXiv:2006.11477, section 2): in each
// of G groups one of V codes is drawn by Gumbel-max (Jang et al. 2017, arXiv:1611.01144).
//
//   s_ngv  = x_ngv - ln(-ln u_ngv),   pick_ng = argmax_v s_ngv
//   code_n = [e_{0, pick_n0} ... e_{G-1, pick_n(G-1)}]
//   soft_ng = softmax(s_ng / tau),    tau = max(start decay^update, floor)
//
// Straight through: the way back goes as if the rows of e had been mixed by `soft`.
//
//   g_ngv = dcode_ng e_gv,   dx_ngv = soft_ngv (g_ngv - sum_v soft_ngv g_ngv) / tau
//   de_gv = sum over the n whose pick_ng is v of dcode_ng
//
// Noise (docs/contract.md section 6): word c of row t of an utterance is word c mod 4 of call
// t ceil(G V / 4) + c / 4; u = ((word >> 9) + 0.5) / 2^23, exact in f32.
#pragma once

#include <algorithm>
#include <cmath>

#include "engine/context.h"
#include "engine/segments.h"

namespace sft {

struct GumbelNoise {
  double start = 0, decay = 1, floor = 0;  // of the temperature; start 0: no noise, no way back
  uint32_t site = 0;

  explicit operator bool() const { return start > 0; }
  double temperature(uint32_t update) const {
    return std::max(start * std::pow(decay, update), floor);
  }
};

struct GumbelOut {
  Tensor code;         // [N, G d]
  Tensor picks;        // [N, G] i32; the first of equals
  Tensor soft;         // [N, G V] f32, saved; empty without noise
  Tensor temperature;  // [1] f32
};

// x [N, G V]; codebook [G V, d] f32; segments: the utterances that the N rows are of.
GumbelOut gumbel_quantise_forward(Context& ctx, Tensor x, Tensor codebook, int groups,
                                  const GumbelNoise& noise, Segments segments);
// dcode [N, G d] -> dx [N, G V], dcodebook [G V, d].
void gumbel_quantise_backward(Context& ctx, Tensor dcode, Tensor codebook, int groups,
                              const GumbelOut& out, Grad dx, Grad dcodebook);

namespace cuda {  // gumbel_quantise.cu
[[gnu::weak]] void gumbel_quantise_forward(Context& ctx, Tensor x, Tensor codebook, int groups,
                                           const GumbelNoise& noise, const Segments& segments,
                                           const GumbelOut& out);
[[gnu::weak]] void gumbel_quantise_backward(Context& ctx, Tensor dcode, Tensor codebook, int groups,
                                            const GumbelOut& out, Grad dx, Grad dcodebook);
}  // namespace cuda

}  // namespace sft
