#include "autograd/functions.h"

#include <algorithm>

#include "engine/ops/attention.h"
#include "engine/ops/code_diversity.h"
#include "engine/ops/conv_strided.h"
#include "engine/ops/cosine_logits.h"
#include "engine/ops/cross_entropy.h"
#include "engine/ops/dropout.h"
#include "engine/ops/feature_penalty.h"
#include "engine/ops/ffn.h"
#include "engine/ops/gelu.h"
#include "engine/ops/layer_norm.h"
#include "engine/ops/linear.h"
#include "engine/ops/lstm.h"
#include "engine/ops/pos_conv.h"
#include "engine/ops/rel_gate.h"
#include "engine/ops/rel_table.h"
#include "engine/ops/segment_mean.h"
#include "engine/ops/take_rows.h"
#include "engine/ops/weight_norm.h"
#include "engine/ops/weighted_sum.h"

namespace sft {
Var linear(Tape& t, Var x, Var weight, Var bias, Var residual, Dropout dropout, Segments segments) {
  const LinearEpilogue epilogue{residual, dropout, segments};
  const Tensor y = linear_forward(t.ctx, x, weight, bias, epilogue);
  return t.record("linear", y, {x, weight, bias, residual}, [=](Tape& t, Tensor dy) {
    const Grad dresidual = t.grad(residual), dx = t.grad(x);
    const Grad dweight = t.grad(weight), dbias = t.grad(bias);
    linear_backward(t.ctx, dy, x, weight, epilogue, dresidual, dx, dweight, dbias);
  });
}

namespace {

// Whether backward will come: forward then keeps what it needs.
bool any_wanted(const Tape& t, std::initializer_list<Var> inputs) {
  return t.recording() &&
         std::any_of(inputs.begin(), inputs.end(), [](const Var& v) { return v.slot != nullptr; });
}

}  // namespace

Var conv_stem(Tape& t, Tensor samples, Var weight, Var bias, Var norm_weight, Var norm_bias,
              const ConvStem& stem, Slots slots) {
  const ConvStemOut out =
      conv_stem_forward(t.ctx, samples, weight, bias, norm_weight, norm_bias, stem, slots);
  return t.record(
      "conv_stem", out.y, {weight, bias, norm_weight, norm_bias}, [=](Tape& t, Tensor dy) {
        const Grad dweight = t.grad(weight), dbias = t.grad(bias);
        const Grad dnorm_weight = t.grad(norm_weight), dnorm_bias = t.grad(norm_bias);
        conv_stem_backward(t.ctx, dy, samples, weight, bias, norm_weight, norm_bias, out.mean,
                           out.rstd, stem, slots, dweight, dbias, dnorm_weight, dnorm_bias);
      });
}

Var conv_strided(Tape& t, Var x, Var weight, Var bias, Var norm_weight, Var norm_bias,
                 int32_t stride, float eps, Slots slots) {
  const ConvStrided conv{stride, eps, any_wanted(t, {x, weight, bias, norm_weight, norm_bias})};
  const ConvStridedOut out =
      conv_strided_forward(t.ctx, x, weight, bias, norm_weight, norm_bias, conv, slots);
  return t.record(
      "conv_strided", out.y, {x, weight, bias, norm_weight, norm_bias}, [=](Tape& t, Tensor dy) {
        const Grad dx = t.grad(x), dweight = t.grad(weight), dbias = t.grad(bias);
        const Grad dnorm_weight = t.grad(norm_weight), dnorm_bias = t.grad(norm_bias);
        conv_strided_backward(t.ctx, dy, x, weight, norm_weight, norm_bias, out.pre, out.mean,
                              out.rstd, conv, slots, dx, dweight, dbias, dnorm_weight, dnorm_bias);
      });
}

Var attention(Tape& t, Var qkv, int heads, Dropout dropout, Segments segments,
              const RelativeBiasVars& vars) {
  const RelativeBias bias{vars.gate, vars.table};
  const AttentionOut out = attention_forward(t.ctx, qkv, bias, heads, dropout, segments);
  return t.record("attention", out.y, {qkv, vars.gate, vars.table}, [=](Tape& t, Tensor dy) {
    AttentionGrads grads;
    grads.qkv = t.grad(qkv), grads.gate = t.grad(vars.gate), grads.table = t.grad(vars.table);
    attention_backward(t.ctx, dy, qkv, bias, out, heads, dropout, segments, grads);
  });
}

Var rel_gate(Tape& t, Var x, Var weight, Var bias, Var scale) {
  const Tensor gate = rel_gate_forward(t.ctx, x, weight, bias, scale);
  return t.record("rel_gate", gate, {x, weight, bias, scale}, [=](Tape& t, Tensor dgate) {
    RelGateGrads grads;
    grads.x = t.grad(x), grads.weight = t.grad(weight);
    grads.bias = t.grad(bias), grads.scale = t.grad(scale);
    rel_gate_backward(t.ctx, dgate, x, weight, bias, scale, grads);
  });
}

Var rel_table(Tape& t, Var embedding, std::span<const int32_t> buckets) {
  const Tensor table = rel_table_forward(t.ctx, embedding, buckets);
  return t.record("rel_table", table, {embedding}, [=](Tape& t, Tensor dtable) {
    rel_table_backward(t.ctx, dtable, buckets, t.grad(embedding));
  });
}

CodeDiversity code_diversity(Tape& t, Var x, int groups, std::span<const float> weight) {
  const CodeDiversityOut out = code_diversity_forward(t.ctx, x, groups);
  const Var loss = t.record("code_diversity", out.loss, {x}, [=](Tape& t, Tensor) {
    const Grad dx = t.grad(x);
    code_diversity_backward(t.ctx, groups, weight, out, dx);
  });
  return {loss, out.perplexity, out.mean};
}

Var contrastive_logits(Tape& t, Var y, Var q, Tensor picks, const Negatives& negatives,
                       float temperature) {
  const ContrastiveOut out = contrastive_logits_forward(t.ctx, y, q, picks, negatives, temperature);
  return t.record("contrastive_logits", out.logits, {y, q}, [=](Tape& t, Tensor dlogits) {
    const Grad dy = t.grad(y), dq = t.grad(q);
    contrastive_logits_backward(t.ctx, dlogits, y, q, negatives, out, temperature, dy, dq);
  });
}

Var cosine_logits(Tape& t, Var x, Var embedding, float temperature) {
  const CosineLogitsOut out = cosine_logits_forward(t.ctx, x, embedding, temperature);
  return t.record("cosine_logits", out.logits, {x, embedding}, [=](Tape& t, Tensor dlogits) {
    const Grad dx = t.grad(x), dembedding = t.grad(embedding);
    cosine_logits_backward(t.ctx, dlogits, x, embedding, out, temperature, dx, dembedding);
  });
}

Var cross_entropy(Tape& t, Var logits, std::span<const int32_t> labels,
                  std::span<const float> weights) {
  const CrossEntropyOut out = cross_entropy_forward(t.ctx, logits, labels);
  return t.record("cross_entropy", out.losses, {logits}, [=](Tape& t, Tensor) {
    const Grad dlogits = t.grad(logits);
    cross_entropy_backward(t.ctx, logits, labels, weights, out.lse, dlogits);
  });
}

CtcLoss ctc(Tape& t, Var logits, const Segments& segments, const CtcTargets& targets,
            std::span<const float> weights, int blank) {
  const CtcOut out = ctc_forward(t.ctx, logits, segments, targets, blank);
  const Var losses = t.record("ctc", out.losses, {logits}, [=](Tape& t, Tensor) {
    const Grad dlogits = t.grad(logits);
    ctc_backward(t.ctx, logits, segments, targets, weights, blank, out, dlogits);
  });
  return {losses, out.infeasible};
}

Var dropout(Tape& t, Var x, Dropout dropout, Segments segments) {
  const Tensor y = dropout_forward(t.ctx, x, dropout, segments);
  return t.record("dropout", y, {x}, [=](Tape& t, Tensor dy) {
    dropout_backward(t.ctx, dy, dropout, segments, t.grad(x));
  });
}

Var feature_penalty(Tape& t, Var x, Segments segments, std::span<const float> weights) {
  const Tensor losses = feature_penalty_forward(t.ctx, x, segments);
  return t.record("feature_penalty", losses, {x}, [=](Tape& t, Tensor) {
    const Grad dx = t.grad(x);
    feature_penalty_backward(t.ctx, x, segments, weights, dx);
  });
}

Var ffn(Tape& t, Var x, Var up_weight, Var up_bias, Var down_weight, Var down_bias, Var residual,
        Dropout activation_dropout, Dropout dropout, Segments segments) {
  const FfnWeights weights{up_weight, up_bias, down_weight, down_bias};
  const FfnEpilogue epilogue{residual, activation_dropout, dropout, segments};
  const std::array inputs{x, up_weight, up_bias, down_weight, down_bias, residual};
  const FfnOut out = ffn_forward(t.ctx, x, weights, epilogue, t.wanted(inputs));
  return t.record("ffn", out.y, inputs, [=](Tape& t, Tensor dy) {
    FfnGrads grads;
    grads.residual = t.grad(residual), grads.x = t.grad(x);
    grads.up_weight = t.grad(up_weight), grads.up_bias = t.grad(up_bias);
    grads.down_weight = t.grad(down_weight), grads.down_bias = t.grad(down_bias);
    ffn_backward(t.ctx, dy, x, weights, epilogue, out.pre, grads);
  });
}

Var gelu(Tape& t, Var x, Var residual) {
  const Tensor y = gelu_forward(t.ctx, x, residual);
  return t.record("gelu", y, {x, residual}, [=](Tape& t, Tensor dy) {
    const Grad dresidual = t.grad(residual), dx = t.grad(x);
    gelu_backward(t.ctx, dy, x, dresidual, dx);
  });
}

Var grouped_conv(Tape& t, Var x, Var weight, Var bias, int groups, Segments segments) {
  const Tensor y =
      pos_conv_forward(t.ctx, x, weight, bias, groups, segments, PosConv::alone, false).y;
  return t.record("grouped_conv", y, {x, weight, bias}, [=](Tape& t, Tensor dy) {
    const Grad dx = t.grad(x), dweight = t.grad(weight), dbias = t.grad(bias);
    pos_conv_backward(t.ctx, dy, x, weight, {}, groups, segments, dx, dweight, dbias);
  });
}

GumbelCode gumbel_quantise(Tape& t, Var x, Var codebook, int groups, const GumbelNoise& noise,
                           Segments segments) {
  const GumbelOut out = gumbel_quantise_forward(t.ctx, x, codebook, groups, noise, segments);
  const Var code = t.record("gumbel_quantise", out.code, {x, codebook}, [=](Tape& t, Tensor dcode) {
    const Grad dx = t.grad(x), dcodebook = t.grad(codebook);
    gumbel_quantise_backward(t.ctx, dcode, codebook, groups, out, dx, dcodebook);
  });
  return {code, out.picks, out.temperature};
}

Var layer_norm(Tape& t, Var x, Var weight, Var bias, float eps) {
  const LayerNormOut out = layer_norm_forward(t.ctx, x, weight, bias, eps);
  return t.record("layer_norm", out.y, {x, weight, bias}, [=](Tape& t, Tensor dy) {
    const Grad dx = t.grad(x), dweight = t.grad(weight), dbias = t.grad(bias);
    layer_norm_backward(t.ctx, dy, x, weight, out.mean, out.rstd, dx, dweight, dbias);
  });
}

namespace {

LstmWeights weights(const LstmVars& v) { return {v.w_ih, v.w_hh, v.b_ih, v.b_hh}; }

LstmGrads gradients(Tape& t, const LstmVars& v) {
  LstmGrads g;
  g.b_ih = t.grad(v.b_ih);
  g.b_hh = t.grad(v.b_hh);
  g.w_ih = t.grad(v.w_ih);
  g.w_hh = t.grad(v.w_hh);
  return g;
}

}  // namespace

Var lstm(Tape& t, Var x, const LstmVars& forwards, const LstmVars& backwards,
         const Segments& segments) {
  const std::array directions{weights(forwards), weights(backwards)};
  const size_t D = backwards.w_ih ? 2 : 1;
  const LstmOut out = lstm_forward(t.ctx, x, {directions.data(), D}, segments);
  const LstmVars &f = forwards, &b = backwards;
  return t.record(
      "lstm", out.y, {x, f.w_ih, f.w_hh, f.b_ih, f.b_hh, b.w_ih, b.w_hh, b.b_ih, b.b_hh},
      [=](Tape& t, Tensor dy) {
        const Grad dx = t.grad(x);
        const std::array grads{gradients(t, forwards), gradients(t, backwards)};
        lstm_backward(t.ctx, dy, x, {directions.data(), D}, segments, out, dx, {grads.data(), D});
      });
}

Var mask_spans(Tape& t, Var x, Var mask_emb, std::span<const int32_t> rows) {
  const Tensor y = mask_spans_forward(t.ctx, x, mask_emb, rows);
  return t.record("mask_spans", y, {x, mask_emb}, [=](Tape& t, Tensor dy) {
    const Grad dx = t.grad(x), dmask_emb = t.grad(mask_emb);
    mask_spans_backward(t.ctx, dy, rows, dx, dmask_emb);
  });
}

Var pos_conv(Tape& t, Var x, Var weight, Var bias, int groups, Segments segments) {
  const bool keep = any_wanted(t, {x, weight, bias});
  const PosConvOut out =
      pos_conv_forward(t.ctx, x, weight, bias, groups, segments, PosConv::residual, keep);
  return t.record("pos_conv", out.y, {x, weight, bias}, [=](Tape& t, Tensor dy) {
    const Grad dx = t.grad(x), dweight = t.grad(weight), dbias = t.grad(bias);
    pos_conv_backward(t.ctx, dy, x, weight, out.pre, groups, segments, dx, dweight, dbias);
  });
}

Var scale_grad(Tape& t, Var x, float factor) {
  return t.record("scale_grad", x.value, {x},
                  [=](Tape& t, Tensor dy) { scale_grad_backward(t.ctx, dy, factor, t.grad(x)); });
}

Var segment_mean(Tape& t, Var x, const Segments& segments) {
  const Tensor y = segment_mean_forward(t.ctx, x, segments);
  return t.record("segment_mean", y, {x}, [=](Tape& t, Tensor dy) {
    const Grad dx = t.grad(x);
    segment_mean_backward(t.ctx, dy, segments, dx);
  });
}

Var spec_augment(Tape& t, Var x, const SpecAugment& options, const Segments& segments) {
  const SpecAugmentOut out = spec_augment_forward(t.ctx, x, options, segments);
  return t.record("spec_augment", out.y, {x}, [=](Tape& t, Tensor dy) {
    const Grad dx = t.grad(x);
    spec_augment_backward(t.ctx, dy, out.plan, options, segments, dx);
  });
}

Var take_rows(Tape& t, Var x, std::span<const int32_t> rows) {
  const Tensor y = take_rows_forward(t.ctx, x, rows);
  return t.record("take_rows", y, {x},
                  [=](Tape& t, Tensor dy) { take_rows_backward(t.ctx, dy, rows, t.grad(x)); });
}

Var weight_norm(Tape& t, Var g, Var v) {
  const Tensor w = weight_norm_forward(t.ctx, g, v);
  return t.record("weight_norm", w, {g, v}, [=](Tape& t, Tensor dw) {
    const Grad dg = t.grad(g), dv = t.grad(v);
    weight_norm_backward(t.ctx, dw, g, v, dg, dv);
  });
}

Var weighted_sum(Tape& t, std::span<const Var> states, Var w, bool normalize) {
  CHECK(states.size() <= kMaxStates, "weighted_sum: {} states", states.size());
  std::array<Var, kMaxStates + 1> all{};
  std::array<Tensor, kMaxStates> values;
  std::copy(states.begin(), states.end(), all.begin());
  std::copy(states.begin(), states.end(), values.begin());
  all[states.size()] = w;
  const std::span inputs = t.keep({all.data(), states.size() + 1});
  const WeightedSumOut out =
      weighted_sum_forward(t.ctx, {values.data(), states.size()}, w, normalize);
  return t.record("weighted_sum", out.y, inputs, [=](Tape& t, Tensor dy) {
    const size_t L = inputs.size() - 1;
    std::array<Tensor, kMaxStates> values;
    std::array<Grad, kMaxStates + 1> grads;
    std::copy_n(inputs.begin(), L, values.begin());
    for (size_t i = 0; i <= L; ++i) grads[i] = t.grad(inputs[i]);
    weighted_sum_backward(t.ctx, dy, {values.data(), L}, out.shares, normalize, {grads.data(), L},
                          grads[L]);
  });
}

}  // namespace sft
