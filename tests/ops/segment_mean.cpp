#include "autograd/functions.h"
#include "tests/op_spec.h"

namespace sft {
namespace {

std::vector<Array> oracle(std::span<const Array> in, const Case& c) {
  const Array& x = in[0];
  const int64_t C = x.shape[1];
  Array y{.shape = {c.B(), C}, .data = std::vector<double>(c.B() * C), .per_utterance = true};
  for (int b = 0; b < c.B(); ++b)
    for (int64_t t = c.segments().starts[b]; t < c.segments().starts[b + 1]; ++t)
      for (int64_t i = 0; i < C; ++i) y.at(b, i) += x.at(t, i) / c.frames[b];
  return {y};
}

const RegisterOp spec(OpSpec{
    .name = "segment_mean",
    .cases = {{.frames = {1}, .dims = {48}},
              {.frames = {7, 1, 33}, .dims = {33}},
              {.frames = {399, 0, 31}, .dims = {30}},
              {.frames = {5, 2}, .dims = {264}},
              {.frames = {}, .dims = {8}},
              {.frames = {812, 399, 1204}, .dims = {768}, .bench = true}},
    .inputs = [](const Case& c, Fill& fill) -> std::vector<Array> {
      return {fill.frames(c, c.dims[0], 2)};
    },
    .oracle = oracle,
    .run = [](Tape& t, std::span<const Var> in, const Case& c) -> std::vector<Var> {
      return {segment_mean(t, in[0], c.segments())};
    },
    .cost =
        [](const Case& c) {
          const double n = static_cast<double>(c.T() * c.dims[0]);
          return Cost{.bytes = 4 * n, .flops = n};
        },
    .cuda = true,
    .terms = 399,
});

}  // namespace
}  // namespace sft
