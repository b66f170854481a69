// Every differentiable function: calls the op of the same name, records its backward. Shapes and
// equations stand in engine/ops/NAME.h. Optional inputs are empty Vars.
#pragma once

#include "autograd/tape.h"
#include "engine/ops/contrastive_logits.h"
#include "engine/ops/conv_stem.h"
#include "engine/ops/ctc.h"
#include "engine/ops/gumbel_quantise.h"
#include "engine/ops/spec_augment.h"
#include "engine/segments.h"

namespace sft {

// Gated relative position bias: from rel_gate and rel_table.
struct RelativeBiasVars {
  Var gate, table;
};
// segments outlive the backward. bias empty: none.
Var attention(Tape& t, Var qkv, int heads, Dropout dropout, Segments segments,
              const RelativeBiasVars& bias = {});
struct CodeDiversity {
  Var loss;                 // [1]
  Tensor perplexity, mean;  // [1], [G V]
};
// A loss: ignores dy. weight [1] outlives the backward.
CodeDiversity code_diversity(Tape& t, Var x, int groups, std::span<const float> weight);
// Views of negatives outlive the backward.
Var contrastive_logits(Tape& t, Var y, Var q, Tensor picks, const Negatives& negatives,
                       float temperature);
Var cosine_logits(Tape& t, Var x, Var embedding, float temperature);
// Views of slots outlive the backward.
Var conv_stem(Tape& t, Tensor samples, Var weight, Var bias, Var norm_weight, Var norm_bias,
              const ConvStem& stem, Slots slots);
// Keeps what backward needs only if some input's gradient is wanted.
Var conv_strided(Tape& t, Var x, Var weight, Var bias, Var norm_weight, Var norm_bias,
                 int32_t stride, float eps, Slots slots);
// A loss: ignores dy. labels and weights [N] outlive the backward.
Var cross_entropy(Tape& t, Var logits, std::span<const int32_t> labels,
                  std::span<const float> weights);
struct CtcLoss {
  Var losses;              // [B]
  int32_t infeasible = 0;  // utterances without a path: loss and gradient are 0
};
// A loss: ignores dy. segments, targets and weights [B] outlive the backward.
CtcLoss ctc(Tape& t, Var logits, const Segments& segments, const CtcTargets& targets,
            std::span<const float> weights, int blank);
Var dropout(Tape& t, Var x, Dropout dropout, Segments segments);
// A loss: ignores dy. segments and weights [B] outlive the backward.
Var feature_penalty(Tape& t, Var x, Segments segments, std::span<const float> weights);
Var ffn(Tape& t, Var x, Var up_weight, Var up_bias, Var down_weight, Var down_bias,
        Var residual = {}, Dropout activation_dropout = {}, Dropout dropout = {},
        Segments segments = {});
// residual + GELU(x).
Var gelu(Tape& t, Var x, Var residual = {});
// The convolution of pos_conv alone.
Var grouped_conv(Tape& t, Var x, Var weight, Var bias, int groups, Segments segments);
struct GumbelCode {
  Var code;                   // [N, G d]
  Tensor picks, temperature;  // [N, G] i32, [1]
};
// segments outlive the backward.
GumbelCode gumbel_quantise(Tape& t, Var x, Var codebook, int groups, const GumbelNoise& noise,
                           Segments segments);
Var layer_norm(Tape& t, Var x, Var weight, Var bias, float eps);
Var linear(Tape& t, Var x, Var weight, Var bias = {}, Var residual = {}, Dropout dropout = {},
           Segments segments = {});
struct LstmVars {
  Var w_ih, w_hh, b_ih, b_hh;
};
// backwards empty: one direction.
Var lstm(Tape& t, Var x, const LstmVars& forwards, const LstmVars& backwards,
         const Segments& segments);
// rows outlive the backward.
Var mask_spans(Tape& t, Var x, Var mask_emb, std::span<const int32_t> rows);
Var pos_conv(Tape& t, Var x, Var weight, Var bias, int groups, Segments segments);
// The value itself, not a copy; its gradient arrives multiplied by `factor`.
Var scale_grad(Tape& t, Var x, float factor);
Var segment_mean(Tape& t, Var x, const Segments& segments);
Var rel_gate(Tape& t, Var x, Var weight, Var bias, Var scale);
// buckets outlive the backward.
Var rel_table(Tape& t, Var embedding, std::span<const int32_t> buckets);
// rows outlive the backward.
Var take_rows(Tape& t, Var x, std::span<const int32_t> rows);
Var weight_norm(Tape& t, Var g, Var v);
Var spec_augment(Tape& t, Var x, const SpecAugment& options, const Segments& segments);
// At most kMaxStates states.
Var weighted_sum(Tape& t, std::span<const Var> states, Var w, bool normalize);

}  // namespace sft
