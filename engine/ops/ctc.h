// Connectionist temporal classification (Graves et al. 2006), with log-softmax inside:
//
//   loss_b = -log p(labels_b | logits_b): the sum over all paths of T_b frames that give the labels
//   when repeats are merged and then blanks are dropped
//   dlogits[t, v] = weight_b (softmax(logits[t])[v] - posterior of v at t)
//
// Alphas and betas are sums in log space, in double: a frame of a peaky model spans more than the
// exponents of any scaled format, and sums over 1500 frames lose 1e-4 in f32.
#pragma once

#include <cstdint>
#include <span>

#include "engine/context.h"
#include "engine/segments.h"

namespace sft {

// Utterance b is to give labels [starts[b], starts[b + 1]).
struct CtcTargets {
  std::span<const int32_t> labels;
  std::span<const int32_t> starts;  // [B + 1]

  int64_t count(int b) const { return starts[b + 1] - starts[b]; }
  std::span<const int32_t> of(int b) const { return labels.subspan(starts[b], count(b)); }
};

struct CtcOut {
  Tensor losses;  // [B] f32, unweighted. No path at all: 0. NaN or +inf among the logits: NaN
  Tensor log_p;   // [B] f64, saved; -inf: no path
  Tensor lse;     // [T] f64, saved: log of the sum of exponentials of each frame
  Tensor alphas;  // f64, saved: [T_b, 2 P_b] of each utterance, P_b = ctc_width of its labels
  int32_t infeasible = 0;  // utterances with fewer frames than labels and repeats need
};

// States of one kind (blank or label): one more than labels, and padding.
SFT_HOST_DEVICE constexpr int64_t ctc_width(int64_t labels) { return (labels + 9) / 8 * 8; }

// logits [T, V], rows may be strided. A label outside of [0, V), or equal to the blank:
// Kind::input, before anything is computed.
CtcOut ctc_forward(Context& ctx, Tensor logits, const Segments& segments, const CtcTargets& targets,
                   int blank);

// weights [B] -> dlogits [T, V]: zero for an utterance without a path, NaN for one whose loss is.
void ctc_backward(Context& ctx, Tensor logits, const Segments& segments, const CtcTargets& targets,
                  std::span<const float> weights, int blank, const CtcOut& out, Grad dlogits);

namespace cuda {  // ctc.cu
[[gnu::weak]] void ctc_forward(Context& ctx, Tensor logits, const Segments& segments,
                               const CtcTargets& targets, int blank, const CtcOut& out);
[[gnu::weak]] void ctc_backward(Context& ctx, Tensor logits, const Segments& segments,
                                const CtcTargets& targets, std::span<const float> weights,
                                int blank, const CtcOut& out, Grad dlogits);
}  // namespace cuda

}  // namespace sft
