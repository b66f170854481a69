// The layers that encoders and heads are made of: their parameters and one operator().
#pragma once

#include "autograd/functions.h"
#include "models/wavlm.h"

namespace sft {

struct Linear {
  Param weight, bias;  // [N, K], [N]

  Linear() = default;
  Linear(int64_t in, int64_t out) : weight{.shape = {out, in}, .product = true}, bias{{out}} {}

  template <class V>
  void visit(V&& v) {
    v("weight", weight), v("bias", bias);
  }
  // residual + dropout(x W^T + b); segments are needed where something is dropped.
  Var operator()(Tape& t, Var x, Var residual = {}, Dropout drop = {},
                 Segments segments = {}) const {
    return linear(t, x, weight, bias, residual, drop, segments);
  }
};

struct LayerNorm {
  Param weight, bias;  // [C]

  LayerNorm() = default;
  explicit LayerNorm(int64_t width) : weight{{width}}, bias{{width}} {}

  template <class V>
  void visit(V&& v) {
    v("weight", weight), v("bias", bias);
  }
  Var operator()(Tape& t, Var x, float eps) const { return layer_norm(t, x, weight, bias, eps); }
};

// Rates of the places that drop; all zero when a model is frozen or evaluated.
struct DropoutRates {
  float input = 0;       // after the feature projection
  float hidden = 0;      // encoder entry, attention output, feed-forward output
  float attention = 0;   // attention probabilities
  float activation = 0;  // after GELU in the feed-forward part
};

struct SelfAttention {
  Param qkv_weight, qkv_bias;  // [3C, C], [3C]: q, k and v behind each other
  Linear o;
  RelativeGate rel_gate;  // WavLM
  Param rel_bias;         // WavLM, layer 0: [buckets, H], of all layers
  uint32_t probs_site = 0, site = 0;

  SelfAttention() = default;
  SelfAttention(const Config& config, int layer, uint32_t layer_site);

  template <class V>
  void visit(V&& v) {
    v({"q.weight", "k.weight", "v.weight"}, qkv_weight);
    v({"q.bias", "k.bias", "v.bias"}, qkv_bias);
    v("o", o);
    v("rel_gate", rel_gate), v("rel_bias", rel_bias);
  }
  // residual + dropout(attention(x)). table: of relative positions, empty without.
  Var operator()(Tape& t, Var x, Var residual, Var table, int heads, const DropoutRates& rates,
                 Segments segments) const;
};

struct FeedForward {
  Linear up, down;
  uint32_t act_site = 0, site = 0;

  FeedForward() = default;
  FeedForward(int64_t width, int64_t ffn, uint32_t layer_site);

  template <class V>
  void visit(V&& v) {
    v("up", up), v("down", down);
  }
  // residual + dropout(down(dropout(gelu(up x)))).
  Var operator()(Tape& t, Var x, Var residual, const DropoutRates& rates, Segments segments) const;
};

}  // namespace sft
