// The strided convolutions: waveform to frames, 16 kHz to 50 Hz.
#pragma once

#include "models/layers.h"
#include "models/pack.h"

namespace sft {

struct ConvLayer {
  Param weight, bias;  // [out, in, k], [out]
  LayerNorm norm;

  template <class V>
  void visit(V&& v) {
    v("weight", weight), v("bias", bias), v("norm", norm);
  }
};

struct FeatureExtractor {
  std::vector<ConvLayer> layers;

  FeatureExtractor() = default;
  explicit FeatureExtractor(const Config& config);

  // wave [S] (pack.wave, filled) -> frames [T, frame_width()], after normalisation of the
  // waveform where the model asks for it.
  Var operator()(Tape& t, const Config& config, Tensor wave, const WavePack& pack) const;
};

}  // namespace sft
