#include "models/feature_extractor.h"

#include "engine/ops/wave_norm.h"

namespace sft {

FeatureExtractor::FeatureExtractor(const Config& config) {
  int64_t in = 1;
  for (size_t i = 0; i < config.conv_dims.size(); ++i) {
    const int64_t out = config.conv_dims[i];
    ConvLayer& layer = layers.emplace_back();
    layer.weight.shape = {out, in, config.conv_kernels[i]};
    if (config.conv_bias) layer.bias.shape = {out};
    if (i == 0 || config.conv_norm == "layer") layer.norm = LayerNorm(out);
    in = out;
  }
}

namespace {

// Runs as one block: where the convolutions are frozen only the frames are kept.
Var convolve(Tape& t, std::span<const Var> in, const FeatureExtractor* conv, const Config* config,
             const WavePack* pack) {
  const auto eps = static_cast<float>(config->norm_eps);
  const Tensor wave =
      config->normalize ? wave_norm(t.ctx, in[0], pack->samples(), config->normalize_eps) : in[0];
  const ConvStem options{static_cast<int32_t>(config->conv_strides[0]),
                         config->conv_norm == "group" ? StemNorm::group : StemNorm::layer, eps};
  const ConvLayer& stem = conv->layers[0];
  Var x = conv_stem(t, wave, stem.weight, stem.bias, stem.norm.weight, stem.norm.bias, options,
                    pack->stage(0));
  for (size_t i = 1; i < conv->layers.size(); ++i) {
    const ConvLayer& layer = conv->layers[i];
    x = conv_strided(t, x, layer.weight, layer.bias, layer.norm.weight, layer.norm.bias,
                     static_cast<int32_t>(config->conv_strides[i]), eps, pack->stage(i));
  }
  return take_rows(t, x, pack->frame_rows());
}

}  // namespace

Var FeatureExtractor::operator()(Tape& t, const Config& config, Tensor wave,
                                 const WavePack& pack) const {
  return t.block(
      "conv", {Var{wave}}, false, [](auto&&... a) { return convolve(a...); }, this, &config, &pack);
}

}  // namespace sft
