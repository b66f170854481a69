#include "models/layers.h"

namespace sft {

SelfAttention::SelfAttention(const Config& c, int layer, uint32_t layer_site)
    : qkv_weight{.shape = {3 * c.width, c.width}, .product = true},
      qkv_bias{{3 * c.width}},
      o(c.width, c.width),
      probs_site(fnv1a(".attn.probs.dropout", layer_site)),
      site(fnv1a(".attn.dropout", layer_site)) {
  if (!c.relative_bias()) return;
  rel_gate = RelativeGate(c);
  if (layer == 0) rel_bias.shape = {c.rel_buckets, c.heads};
}

Var SelfAttention::operator()(Tape& t, Var x, Var residual, Var table, int heads,
                              const DropoutRates& rates, Segments segments) const {
  const Var qkv = linear(t, x, qkv_weight, qkv_bias);
  RelativeBiasVars bias;
  if (table.value) bias = {rel_gate(t, x), table};
  const Var mixed = attention(t, qkv, heads, Dropout{rates.attention, probs_site}, segments, bias);
  return o(t, mixed, residual, Dropout{rates.hidden, site}, segments);
}

FeedForward::FeedForward(int64_t width, int64_t ffn, uint32_t layer_site)
    : up(width, ffn),
      down(ffn, width),
      act_site(fnv1a(".ffn.act.dropout", layer_site)),
      site(fnv1a(".ffn.dropout", layer_site)) {}

Var FeedForward::operator()(Tape& t, Var x, Var residual, const DropoutRates& rates,
                            Segments segments) const {
  return ffn(t, x, up.weight, up.bias, down.weight, down.bias, residual,
             Dropout{rates.activation, act_site}, Dropout{rates.hidden, site}, segments);
}

}  // namespace sft
