#include "autograd/functions.h"
#include "tests/op_spec.h"

namespace sft {
namespace {

Dropout dropout_of(const Case& c) {
  return {.rate = c.training ? 0.3f : 0, .site = fnv1a("feat_proj.dropout")};
}

const RegisterOp dropout_spec(OpSpec{
    .name = "dropout",
    .cases = {{.frames = {1}, .dims = {48}},
              {.frames = {7, 1, 33}, .dims = {33}, .training = true, .first_utterance = 2},
              {.frames = {3, 14}, .dims = {520}, .training = true},
              {.frames = {}, .dims = {8}, .training = true},
              {.frames = {812, 399, 389}, .dims = {768}, .bench = true, .training = true}},
    .inputs = [](const Case& c, Fill& fill) -> std::vector<Array> {
      return {fill.frames(c, c.dims[0])};
    },
    .oracle = [](std::span<const Array> in, const Case& c) -> std::vector<Array> {
      Array y = in[0];
      const int64_t C = y.shape[1];
      for (int64_t t = 0; t < y.shape[0]; ++t)
        for (int64_t i = 0; i < C; ++i) y.at(t, i) *= dropout_factor(c, dropout_of(c), t, i, C);
      return {y};
    },
    .run = [](Tape& t, std::span<const Var> in, const Case& c) -> std::vector<Var> {
      return {dropout(t, in[0], dropout_of(c), c.segments())};
    },
    .cost =
        [](const Case& c) {
          const double n = static_cast<double>(c.T() * c.dims[0]);
          return Cost{.bytes = 8 * n, .flops = n};
        },
    .cuda = true,
});

}  // namespace
}  // namespace sft
