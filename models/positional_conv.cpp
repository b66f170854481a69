#include "models/positional_conv.h"

namespace sft {

PositionalConv::PositionalConv(const Config& c) : bias{{c.width}} {
  const Shape kernel{c.width, c.width / c.pos_groups, c.pos_kernel};
  if (c.stacked_positions()) {
    weight.shape = kernel;
  } else {
    weight_g.shape = {c.pos_kernel};
    weight_v.shape = kernel;
  }
}

PositionalConvs::PositionalConvs(const Config& config)
    : layers(static_cast<size_t>(config.pos_depth), PositionalConv(config)) {}

Var PositionalConvs::operator()(Tape& t, Var x, const Config& config, Segments segments) const {
  const int groups = static_cast<int>(config.pos_groups);
  if (!config.stacked_positions()) {
    const Var kernel = weight_norm(t, layers[0].weight_g, layers[0].weight_v);
    return pos_conv(t, x, kernel, layers[0].bias, groups, segments);
  }
  constexpr float kEps = 1e-5f;  // of these norms, whatever that of the others is
  Var y = x;
  for (size_t i = 0; i < layers.size(); ++i) {
    y = grouped_conv(t, y, layers[i].weight, layers[i].bias, groups, segments);
    y = layer_norm(t, y, {}, {}, kEps);
    y = gelu(t, y, i + 1 < layers.size() ? Var() : x);
  }
  return y;
}

}  // namespace sft
