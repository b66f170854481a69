#include <cmath>

#include "autograd/functions.h"
#include "tests/doctest.h"
#include "tests/op_spec.h"

namespace sft {
namespace {

constexpr float kTemperature = 0.1f;

double product(const Array& a, int64_t i, const Array& b, int64_t j) {
  double total = 0;
  for (int64_t d = 0; d < a.shape[1]; ++d) total += a.at(i, d) * b.at(j, d);
  return total;
}

double norm(const Array& a, int64_t i) { return std::max(std::sqrt(product(a, i, a, i)), 1e-8); }

// x [N, D], embedding [V, D]
std::vector<Array> oracle(std::span<const Array> in, const Case&) {
  const Array &x = in[0], &e = in[1];
  Array logits{.shape = {x.shape[0], e.shape[0]}, .data = {}, .per_frame = true};
  for (int64_t n = 0; n < x.shape[0]; ++n)
    for (int64_t v = 0; v < e.shape[0]; ++v)
      logits.data.push_back(product(x, n, e, v) / (norm(x, n) * norm(e, v)) / double{kTemperature});
  return {logits};
}

// dims: V, D
const RegisterOp spec(OpSpec{
    .name = "cosine_logits",
    .cases = {{.frames = {1}, .dims = {3, 4}},
              {.frames = {7, 1, 33}, .dims = {31, 17}},
              {.frames = {31, 40}, .dims = {104, 32}},
              {.frames = {}, .dims = {5, 8}},
              {.frames = {2000}, .dims = {504, 256}, .bench = true}},
    .inputs = [](const Case& c, Fill& fill) -> std::vector<Array> {
      return {fill.frames(c, c.dims[1], 2), fill.normal({c.dims[0], c.dims[1]})};
    },
    .oracle = oracle,
    .run = [](Tape& t, std::span<const Var> in, const Case&) -> std::vector<Var> {
      return {cosine_logits(t, in[0], in[1], kTemperature)};
    },
    .cost =
        [](const Case& c) {
          const auto N = static_cast<double>(c.T()), V = static_cast<double>(c.dims[0]),
                     D = static_cast<double>(c.dims[1]);
          return Cost{.bytes = 4 * (N * V + (N + V) * D), .flops = 2 * N * V * D};
        },
    .cuda = true,
    .terms = 104,
    // logits are f32; dlogits, scaled, are rounded, and dx
    .roundings = 0,
    .gradient_roundings = 2,
});

}  // namespace

TEST_CASE("cosine_logits: a vector of zeros has logits 0 and a finite gradient") {
  for (const Where where : everywhere()) {
    OpRun run(/*poison=*/true, 0, 0, where);
    Tape tape(run.ctx);
    Fill fill(3);
    const Array zeros{.shape = {1, 4}, .data = std::vector<double>(4), .per_frame = true};
    const std::vector<Array> in{zeros, fill.normal({3, 4})};
    const std::vector<Var> vars = run.place(tape, in);
    const Var logits = cosine_logits(tape, vars[0], vars[1], kTemperature);
    tape.seed(logits, logits.value);
    tape.backward();
    for (const double x : OpRun::read(logits).data) EXPECT(x == 0);
    for (const double x : OpRun::read(tape.gradient(vars[0])).data) EXPECT(std::isfinite(x));
    for (const double x : OpRun::read(tape.gradient(vars[1])).data) EXPECT(x == 0);
  }
}

}  // namespace sft
