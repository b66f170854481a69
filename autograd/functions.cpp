#include "autograd/functions.h"

#include <algorithm>

#include "engine/ops/attention.h"
#include "engine/ops/cosine_logits.h"
#include "engine/ops/cross_entropy.h"
#include "engine/ops/feature_penalty.h"
#include "engine/ops/layer_norm.h"
#include "engine/ops/lstm.h"
#include "engine/ops/segment_mean.h"
#include "engine/ops/weighted_sum.h"

namespace sft {

Var attention(Tape& t, Var qkv, int heads, Dropout dropout, Segments segments) {
  const AttentionOut out = attention_forward(t.ctx, qkv, heads, dropout, segments);
  return t.record("attention", out.y, {qkv}, [=](Tape& t, Tensor dy) {
    const Grad dqkv = t.grad(qkv);
    attention_backward(t.ctx, dy, qkv, out, heads, dropout, segments, dqkv);
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

Var feature_penalty(Tape& t, Var x, Segments segments, std::span<const float> weights) {
  const Tensor losses = feature_penalty_forward(t.ctx, x, segments);
  return t.record("feature_penalty", losses, {x}, [=](Tape& t, Tensor) {
    const Grad dx = t.grad(x);
    feature_penalty_backward(t.ctx, x, segments, weights, dx);
  });
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

Var segment_mean(Tape& t, Var x, const Segments& segments) {
  const Tensor y = segment_mean_forward(t.ctx, x, segments);
  return t.record("segment_mean", y, {x}, [=](Tape& t, Tensor dy) {
    const Grad dx = t.grad(x);
    segment_mean_backward(t.ctx, dy, segments, dx);
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
