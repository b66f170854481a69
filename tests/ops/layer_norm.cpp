#include <cmath>

#include "autograd/functions.h"
#include "tests/op_spec.h"

namespace sft {
namespace {

std::vector<Array> oracle(std::span<const Array> in, const Case&) {
  const Array& x = in[0];
  Array y = x;
  const int64_t C = x.shape[1];
  for (int64_t t = 0; t < x.shape[0]; ++t) {
    double mean = 0, variance = 0;
    for (int64_t c = 0; c < C; ++c) mean += x.at(t, c) / C;
    for (int64_t c = 0; c < C; ++c) variance += std::pow(x.at(t, c) - mean, 2) / C;
    for (int64_t c = 0; c < C; ++c) {
      y.at(t, c) = (x.at(t, c) - mean) / std::sqrt(variance + 1e-5);
      if (in.size() > 1) y.at(t, c) = y.at(t, c) * in[1].data[c] + in[2].data[c];
    }
  }
  return {y};
}

OpSpec spec(const char* name, bool affine) {
  return {
      .name = name,
      .cases = {{.frames = {1}, .dims = {48}},
                {.frames = {7, 1, 33}, .dims = {33}},
                {.frames = {31, 130}, .dims = {16}},
                {.frames = {}, .dims = {8}},
                {.frames = {2, 3}, .dims = {1280}},  // wider than kernels with four vectors a lane
                {.frames = {812, 399, 1204}, .dims = {768}, .bench = true}},
      .inputs =
          [=](const Case& c, Fill& fill) {
            const int64_t C = c.dims[0];
            std::vector<Array> in{fill.frames(c, C, 2)};
            if (affine) in.push_back(fill.normal({C})), in.push_back(fill.normal({C}));
            return in;
          },
      .oracle = oracle,
      .run = [=](Tape& t, std::span<const Var> in, const Case&) -> std::vector<Var> {
        return {layer_norm(t, in[0], affine ? in[1] : Var(), affine ? in[2] : Var(), 1e-5f)};
      },
      .cost =
          [](const Case& c) {
            const double n = static_cast<double>(c.T() * c.dims[0]);
            return Cost{.bytes = 8 * n, .flops = 8 * n};
          },
      .cuda = true,
      .terms = 768,
  };
}

const RegisterOp affine(spec("layer_norm", true));
const RegisterOp plain(spec("layer_norm_plain", false));

}  // namespace
}  // namespace sft
