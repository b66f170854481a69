#include "autograd/functions.h"
#include "tests/op_spec.h"

namespace sft {
namespace {

// x [T, C], weights [B]
std::vector<Array> oracle(std::span<const Array> in, const Case& c) {
  const Array& x = in[0];
  const int64_t C = x.shape[1];
  Array losses{.shape = {c.B()}, .data = {}, .per_utterance = true};
  int64_t t = 0;
  for (const int32_t T : c.frames) {
    double total = 0;
    for (const int64_t end = t + T; t < end; ++t)
      for (int64_t i = 0; i < C; ++i) total += x.at(t, i) * x.at(t, i);
    losses.data.push_back(total / static_cast<double>(T * C));
  }
  return {losses};
}

const RegisterOp spec(OpSpec{
    .name = "feature_penalty",
    .cases = {{.frames = {1}, .dims = {3}},
              {.frames = {7, 1, 33}, .dims = {33}},
              {.frames = {31, 130}, .dims = {16}},
              {.frames = {}, .dims = {8}},
              {.frames = {812, 399, 1204}, .dims = {512}, .bench = true}},
    .inputs = [](const Case& c, Fill& fill) -> std::vector<Array> {
      Array weights = fill.normal({c.B()});
      weights.gradient = false, weights.per_utterance = weights.on_host = true;
      return {fill.frames(c, c.dims[0], 2), weights};
    },
    .oracle = oracle,
    .run = [](Tape& t, std::span<const Var> in, const Case& c) -> std::vector<Var> {
      return {feature_penalty(t, in[0], c.segments(), as_floats(in[1]))};
    },
    .cost =
        [](const Case& c) {
          const auto n = static_cast<double>(c.T() * c.dims[0]);
          return Cost{.bytes = 4 * n, .flops = 2 * n};
        },
    .cuda = true,
    .terms = 130,
    // losses are f32; a gradient is rounded once
    .roundings = 0,
    .gradient_roundings = 1,
    .loss = true,
});

}  // namespace
}  // namespace sft
