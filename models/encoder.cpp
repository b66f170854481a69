#include "models/encoder.h"

#include <fmt/format.h>

namespace sft {

EncoderLayer::EncoderLayer(const Config& config, int index) {
  const uint32_t site = fnv1a(fmt::format("enc.{}", index));
  attn = SelfAttention(config, index, site);
  attn_norm = LayerNorm(config.width);
  ffn = FeedForward(config.width, config.ffn, site);
  ffn_norm = LayerNorm(config.width);
}

Encoder::Encoder(const Config& c)
    : config(c),
      conv(c),
      feat_proj(c.frame_width(), c.width),
      pos_conv(c),
      norm(c.width),
      distill(c) {
  if (c.feat_norm) feat_norm = LayerNorm(c.frame_width());
  if (c.mask_emb) mask_emb.shape = {c.width};
  for (int i = 0; i < c.layers; ++i) layers.emplace_back(c, i);
  if (c.relative_bias()) rel_buckets = relative_buckets(c.rel_buckets, c.rel_max_distance);
}

namespace {

struct LayerState {
  const EncoderLayer* layer;
  const Config* config;
  DropoutRates rates;
  Segments segments;
};

// Post-LN: LN(x + f(x)). Pre-LN: x + f(LN(x)).
Var run_layer(Tape& t, std::span<const Var> in, const LayerState& s) {
  const auto eps = static_cast<float>(s.config->norm_eps);
  const int heads = static_cast<int>(s.config->heads);
  const EncoderLayer& layer = *s.layer;
  const Var x = in[0], table = in[1];
  if (s.config->pre_norm) {
    const Var normed = layer.attn_norm(t, x, eps);
    const Var mid = layer.attn(t, normed, x, table, heads, s.rates, s.segments);
    return layer.ffn(t, layer.ffn_norm(t, mid, eps), mid, s.rates, s.segments);
  }
  const Var mid = layer.attn_norm(t, layer.attn(t, x, x, table, heads, s.rates, s.segments), eps);
  return layer.ffn_norm(t, layer.ffn(t, mid, mid, s.rates, s.segments), eps);
}

struct EntryState {
  const Encoder* encoder;
  DropoutRates rates;
  Segments segments;
  std::span<const int32_t> masked;
};

Var project(Tape& t, std::span<const Var> in, const EntryState& s) {
  const Encoder& e = *s.encoder;
  const auto eps = static_cast<float>(e.config.norm_eps);
  Var x = e.config.feat_norm ? e.feat_norm(t, in[0], eps) : in[0];
  x = e.feat_proj(t, x, {}, Dropout{s.rates.input, fnv1a("feat_proj.dropout")}, s.segments);
  return s.masked.empty() ? x : mask_spans(t, x, e.mask_emb, s.masked);
}

Var add_positions(Tape& t, std::span<const Var> in, const EntryState& s) {
  const Encoder& e = *s.encoder;
  Var x = e.pos_conv(t, in[0], e.config, s.segments);
  if (!e.config.pre_norm) x = e.norm(t, x, static_cast<float>(e.config.norm_eps));
  return dropout(t, x, Dropout{s.rates.hidden, fnv1a("enc.dropout")}, s.segments);
}

// Frames to the input of the first layer.
Var enter(Tape& t, Var features, const EntryState& entry) {
  return t.block(
      "enc.entry", {features}, false,
      [](Tape& t, std::span<const Var> in, const EntryState& s) {
        const Var x = project(t, in, s);
        return add_positions(t, std::span(&x, 1), s);
      },
      entry);
}

// The same in two blocks, so that the projected frames can be kept.
Var enter(Tape& t, Var features, const EntryState& entry, Var& projected) {
  projected = t.block(
      "enc.projection", {features}, false,
      [](Tape& t, std::span<const Var> in, const EntryState& s) { return project(t, in, s); },
      entry);
  return t.block(
      "enc.positions", {projected}, false,
      [](Tape& t, std::span<const Var> in, const EntryState& s) { return add_positions(t, in, s); },
      entry);
}

bool layer_dropped(const Rng& rng, int layer, double rate) {
  if (rate <= 0) return false;
  const PhiloxWords words = philox(rng.seed, layer / 4, 0, rng.update, fnv1a("layerdrop"));
  return (words[layer % 4] + 0.5) / 4294967296.0 < rate;
}

}  // namespace

HiddenStates Encoder::encode(Tape& t, Var features, Segments segments,
                             const EncodeOptions& options) const {
  HiddenStates out;
  out.count = static_cast<int>(config.states()), out.output = static_cast<int>(config.layers);
  const auto keep = [&](int i) { return options.keep_all || (i < 64 && (options.keep >> i & 1)); };
  const EntryState entry{this, options.rates, segments, options.masked};
  const bool predicts = !config.pretrain.distill.empty();
  Var projected;
  Var x = predicts ? enter(t, features, entry, projected) : enter(t, features, entry);
  if (keep(0)) out.states[0] = predicts ? projected : x;
  const Var table =
      config.relative_bias() ? rel_table(t, layers[0].attn.rel_bias, rel_buckets) : Var{};
  for (size_t i = 0; i < layers.size(); ++i) {
    const int state = static_cast<int>(i) + 1;
    // memory is planned for updates that drop none
    if (t.ctx.dry || !layer_dropped(t.ctx.rng, static_cast<int>(i), options.layerdrop))
      x = t.block(
          "enc.layer", {x, table}, options.recompute,
          [](Tape& t, std::span<const Var> in, const LayerState& s) { return run_layer(t, in, s); },
          LayerState{&layers[i], &config, options.rates, segments});
    if (keep(state)) out.states[state] = x;
  }
  if (config.pre_norm) x = norm(t, x, static_cast<float>(config.norm_eps));
  out.states[out.output] = x;
  bool predictions = false;
  for (int i = out.output + 1; i < out.count; ++i) predictions |= keep(i);
  if (predictions)
    distill(t, x, std::span(out.states).subspan(out.output + 1, out.count - out.output - 1));
  return out;
}

DropoutRates training_rates(const Config& config) {
  const auto& t = config.train;
  return {static_cast<float>(t.input_dropout), static_cast<float>(t.dropout),
          static_cast<float>(t.attention_dropout), static_cast<float>(t.activation_dropout)};
}

}  // namespace sft
