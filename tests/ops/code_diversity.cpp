#include <cmath>

#include "autograd/functions.h"
#include "tests/doctest.h"
#include "tests/op_spec.h"

namespace sft {
namespace {

double perplexity(const Array& x, int64_t first, int64_t V) {
  std::vector<double> p(V);
  for (int64_t n = 0; n < x.shape[0]; ++n) {
    double total = 0;
    for (int64_t v = 0; v < V; ++v) total += std::exp(x.at(n, first + v));
    for (int64_t v = 0; v < V; ++v)
      p[v] += std::exp(x.at(n, first + v)) / total / static_cast<double>(x.shape[0]);
  }
  double entropy = 0;
  for (const double q : p) entropy -= q * std::log(q + 1e-7);
  return std::exp(entropy);
}

// x [N, G V], weight [1]. dims: G, V
std::vector<Array> oracle(std::span<const Array> in, const Case& c) {
  const auto codes = static_cast<double>(c.dims[0] * c.dims[1]);
  double total = 0;
  for (int64_t g = 0; g < c.dims[0]; ++g) total += perplexity(in[0], g * c.dims[1], c.dims[1]);
  return {{.shape = {1}, .data = {in[0].shape[0] ? (codes - total) / codes : 0}}};
}

const RegisterOp spec(OpSpec{
    .name = "code_diversity",
    .cases = {{.frames = {1}, .dims = {1, 3}},
              {.frames = {7, 1, 33}, .dims = {2, 5}},
              {.frames = {31}, .dims = {3, 40}},
              {.frames = {65}, .dims = {1, 131}},
              {.frames = {}, .dims = {2, 4}},
              {.frames = {800}, .dims = {2, 320}, .bench = true}},
    .inputs = [](const Case& c, Fill& fill) -> std::vector<Array> {
      Array weight{.shape = {1}, .data = {0.7}, .gradient = false, .on_host = true};
      return {fill.frames(c, c.dims[0] * c.dims[1], 2), weight};
    },
    .oracle = oracle,
    .run = [](Tape& t, std::span<const Var> in, const Case& c) -> std::vector<Var> {
      return {code_diversity(t, in[0], static_cast<int>(c.dims[0]), as_floats(in[1])).loss};
    },
    .cost =
        [](const Case& c) {
          const auto n = static_cast<double>(c.T() * c.dims[0] * c.dims[1]);
          return Cost{.bytes = 12 * n, .flops = 20 * n};
        },
    .cuda = true,
    .terms = 131,
    .roundings = 0,  // the loss is f32
    .gradient_roundings = 1,
    .loss = true,
    .packs = false,
});

}  // namespace

TEST_CASE("code_diversity: codes in equal use, and one code alone") {
  OpRun run(/*poison=*/true);
  Tape tape(run.ctx);
  const std::array<float, 1> weight{1};
  Array x{.shape = {4, 8}, .data = std::vector<double>(32), .per_frame = true};
  const CodeDiversity equal =
      code_diversity(tape, tape.variable(run.write(x, Dtype::f32)), 2, weight);
  EXPECT(OpRun::read(equal.perplexity).data[0] == doctest::Approx(8).epsilon(1e-5));
  EXPECT(std::abs(OpRun::read(equal.loss).data[0]) < 1e-5);
  for (int64_t n = 0; n < 4; ++n) x.at(n, 1) = x.at(n, 4) = 100;
  const CodeDiversity one =
      code_diversity(tape, tape.variable(run.write(x, Dtype::f32)), 2, weight);
  EXPECT(OpRun::read(one.perplexity).data[0] == doctest::Approx(2).epsilon(1e-5));
  EXPECT(OpRun::read(one.mean).data[1] == doctest::Approx(1));
}

}  // namespace sft
