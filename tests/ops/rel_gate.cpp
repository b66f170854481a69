#include "engine/ops/rel_gate.h"

#include <cmath>

#include "autograd/functions.h"
#include "tests/doctest.h"
#include "tests/op_spec.h"

namespace sft {
namespace {

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// dims: H, D. The eight logits one by one, as the paper's code has them.
std::vector<Array> oracle(std::span<const Array> in, const Case& c) {
  const Array &x = in[0], &weight = in[1], &bias = in[2], &scale = in[3];
  const int64_t H = c.dims[0], D = c.dims[1], T = c.T();
  Array gate{.shape = {H, T}, .data = std::vector<double>(static_cast<size_t>(H * T))};
  for (int64_t h = 0; h < H; ++h)
    for (int64_t t = 0; t < T; ++t) {
      double w[8];
      for (int64_t k = 0; k < 8; ++k) {
        w[k] = bias.data[k];
        for (int64_t d = 0; d < D; ++d) w[k] += weight.at(k, d) * x.at(t, h * D + d);
      }
      const double r = sigmoid(w[0] + w[1] + w[2] + w[3]), s = sigmoid(w[4] + w[5] + w[6] + w[7]);
      gate.at(h, t) = r * (s * scale.data[h] - 1) + 2;
    }
  return {gate};
}

const RegisterOp rel_gate_op(OpSpec{
    .name = "rel_gate",
    .cases = {{.frames = {1}, .dims = {1, 4}},
              {.frames = {7, 1, 33}, .dims = {3, 12}},
              {.frames = {65, 399}, .dims = {2, 64}},
              {.frames = {31}, .dims = {5, 36}},
              {.frames = {9, 70}, .dims = {1, 128}},
              {.frames = {}, .dims = {2, 8}},
              {.frames = {500, 500}, .dims = {12, 64}, .bench = true}},
    .inputs =
        [](const Case& c, Fill& fill) {
          const int64_t H = c.dims[0], D = c.dims[1];
          return std::vector<Array>{fill.frames(c, H * D),
                                    fill.normal({8, D}, 0.5 / std::sqrt(static_cast<double>(D))),
                                    fill.normal({8}, 0.5), fill.uniform({H}, 0.5, 1.5)};
        },
    .oracle = oracle,
    .run = [](Tape& t, std::span<const Var> in, const Case&) -> std::vector<Var> {
      return {rel_gate(t, in[0], in[1], in[2], in[3])};
    },
    .cost =
        [](const Case& c) {
          const double elements = static_cast<double>(c.T() * c.dims[0] * c.dims[1]);
          return Cost{.bytes = 4 * elements, .flops = 4 * elements};
        },
    .cuda = true,
    .terms = 464,  // frames, of the gradients of the weights; 128 of a dot product
    .packs = false,
});

}  // namespace

TEST_CASE("rel_gate: what it refuses") {
  OpRun run(true);
  const auto message = [&](Shape weight, Shape bias, int64_t heads) {
    const Tensor x = run.ctx.activation({3, 24}), w = run.ctx.activation(weight),
                 b = run.ctx.activation(bias), scale = run.ctx.activation({heads});
    return test::error_of([&] { rel_gate_forward(run.ctx, x, w, b, scale); }).message;
  };
  EXPECT(message({8, 8}, {8}, 4).find("weight is [8, 8]") != std::string::npos);
  EXPECT(message({8, 6}, {4}, 4).find("bias [4]") != std::string::npos);
  EXPECT(message({8, 6}, {8}, 5).find("scale [5]") != std::string::npos);
}

}  // namespace sft
