// The encoder of HuBERT (Hsu et al. 2021, arXiv:2106.07447), wav2vec 2.0 (Baevski et al. 2020,
// arXiv:2006.11477) and their kin, post-LN and pre-LN: one graph, told apart by configuration.
//
//   frames -> [layer norm] -> linear -> [span mask] -> + positional convolutions -> [layer norm]
//          -> layers -> [layer norm]
//
// WavLM adds to its attention (models/wavlm.h); UniSpeech-SAT (arXiv:2110.05752) is HuBERT's;
// data2vec has other positional convolutions
// (models/positional_conv.h); DistilHuBERT predicts states of its teacher (models/distill_heads.h);
// DeCoAR 2.0 (Ling & Liu 2020, arXiv:2012.06659) has log-mel frames (models/pack.h).
//
// Hidden states (docs/contract.md section 1): 0 is the input of the first layer, i the output of
// layer i, that of the last layer is the encoder's output, for pre-LN models after the final norm.
// With prediction heads state 0 is the projected frames, and the predictions stand behind the
// layers, as in s3prl.
#pragma once

#include <array>

#include "engine/ops/weighted_sum.h"
#include "models/distill_heads.h"
#include "models/feature_extractor.h"
#include "models/positional_conv.h"

namespace sft {

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
  int count = 0;   // config.states()
  int output = 0;  // that of the last layer

  Var last() const { return states[output]; }
};

struct EncodeOptions {
  DropoutRates rates;
  double layerdrop = 0;
  bool recompute = false;  // rebuild each layer's activations on the way back
  uint64_t keep = 0;       // bit i: keep state i (the output is always kept)
  bool keep_all = false;
  std::span<const int32_t> masked;  // [M] frames that become mask_emb, sorted
};

struct Encoder {
  Config config;
  FeatureExtractor conv;
  LayerNorm feat_norm;
  Linear feat_proj;
  Param mask_emb;  // [C]
  PositionalConvs pos_conv;
  LayerNorm norm;
  std::vector<EncoderLayer> layers;
  std::vector<int32_t> rel_buckets;  // WavLM; models/wavlm.h
  DistillHeads distill;

  Encoder() = default;
  explicit Encoder(const Config& config);

  template <class V>
  void visit(V&& v) {
    v("mask_emb", mask_emb);
    v("conv", conv.layers);
    v("feat_norm", feat_norm), v("feat_proj", feat_proj);
    v("pos_conv", pos_conv.layers);
    v("enc.norm", norm);
    v("enc", layers);
    v("pretrain.distill", distill);
  }

  // Waveforms to frames [T, config.frame_width()].
  Var features(Tape& t, Tensor wave, const WavePack& pack) const {
    return config.log_mel() ? Var{wave} : conv(t, config, wave, pack);
  }
  // Frames to hidden states [T, C].
  HiddenStates encode(Tape& t, Var features, Segments segments, const EncodeOptions& options) const;
};

// The rates that a model was trained with, as its configuration says.
DropoutRates training_rates(const Config& config);

}  // namespace sft
