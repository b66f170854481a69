// The encoder of HuBERT (Hsu et al. 2021, arXiv:2106.07447), wav2vec 2.0 (Baevski et al. 2020,
// arXiv:2006.11477) and, with what models/wavlm.h adds to its attention, WavLM; post-LN and pre-LN:
// the same graph, told apart by their configuration.
//
//   frames -> layer norm -> linear -> [span mask] -> + gelu(positional convolution) -> [layer norm]
//          -> layers -> [layer norm]
//
// Hidden states (docs/contract.md section 1): 0 is the input of the first layer, i the output of
// layer i, the last one is the encoder's output, for pre-LN models after the final norm.
#pragma once

#include <array>

#include "engine/ops/weighted_sum.h"
#include "models/feature_extractor.h"

namespace sft {

struct PositionalConv {
  Param weight_g, weight_v, bias;  // [K], [C, C/G, K], [C]

  template <class V>
  void visit(V&& v) {
    v("weight_g", weight_g), v("weight_v", weight_v), v("bias", bias);
  }
};

struct EncoderLayer {
  SelfAttention attn;
  LayerNorm attn_norm;
  FeedForward ffn;
  LayerNorm ffn_norm;

  EncoderLayer() = default;
  EncoderLayer(const Config& config, int index);

  template <class V>
  void visit(V&& v) {
    v("attn", attn), v("attn_norm", attn_norm), v("ffn", ffn), v("ffn_norm", ffn_norm);
  }
};

// The states that were kept; the others are empty.
struct HiddenStates {
  std::array<Var, kMaxStates> states;
  int count = 0;  // layers + 1

  Var last() const { return states[count - 1]; }
};

struct EncodeOptions {
  DropoutRates rates;
  double layerdrop = 0;
  bool recompute = false;  // rebuild each layer's activations on the way back
  uint64_t keep = 0;       // bit i: keep state i (the last one is always kept)
  bool keep_all = false;
  std::span<const int32_t> masked;  // [M] frames that become mask_emb, sorted
};

struct Encoder {
  Config config;
  FeatureExtractor conv;
  LayerNorm feat_norm;
  Linear feat_proj;
  Param mask_emb;  // [C]
  PositionalConv pos_conv;
  LayerNorm norm;
  std::vector<EncoderLayer> layers;
  std::vector<int32_t> rel_buckets;  // WavLM; models/wavlm.h

  Encoder() = default;
  explicit Encoder(const Config& config);

  template <class V>
  void visit(V&& v) {
    v("mask_emb", mask_emb);
    v("conv", conv.layers);
    v("feat_norm", feat_norm), v("feat_proj", feat_proj);
    v("pos_conv.0", pos_conv);
    v("enc.norm", norm);
    v("enc", layers);
  }

  // Waveforms to frames [T, conv_dims.back()].
  Var features(Tape& t, Tensor wave, const WavePack& pack) const {
    return conv(t, config, wave, pack);
  }
  // Frames to hidden states [T, C].
  HiddenStates encode(Tape& t, Var features, Segments segments, const EncodeOptions& options) const;
};

// The rates that a model was trained with, as its configuration says.
DropoutRates training_rates(const Config& config);

}  // namespace sft
