// Where a frame stands: convolutions over the frames, added to them.
//
//   x + GELU(conv(x)), the kernel weight-normalised per tap     wav2vec 2.0 and its kin
//   x + f(f(...f(x))), f(x) = GELU(norm(conv(x))), `pos_depth` plain convolutions, norms without
//   affine part     data2vec (Baevski et al. 2022, arXiv:2202.03555)
#pragma once

#include "models/config.h"
#include "models/layers.h"

namespace sft {

struct PositionalConv {
  Param weight_g, weight_v;  // [K], [C, C/G, K]: of a normalised kernel
  Param weight;              // [C, C/G, K]: a plain one
  Param bias;                // [C]

  PositionalConv() = default;
  explicit PositionalConv(const Config& config);

  template <class V>
  void visit(V&& v) {
    v("weight_g", weight_g), v("weight_v", weight_v), v("weight", weight), v("bias", bias);
  }
};

struct PositionalConvs {
  std::vector<PositionalConv> layers;

  PositionalConvs() = default;
  explicit PositionalConvs(const Config& config);

  Var operator()(Tape& t, Var x, const Config& config, Segments segments) const;
};

}  // namespace sft
