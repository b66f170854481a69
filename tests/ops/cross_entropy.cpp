#include <cmath>

#include "autograd/functions.h"
#include "tests/doctest.h"
#include "tests/op_spec.h"

namespace sft {
namespace {

// in: logits [N, V], labels [N], weights [N]
std::vector<Array> oracle(std::span<const Array> in, const Case&) {
  const Array& x = in[0];
  const int64_t N = x.shape[0], V = x.shape[1];
  Array losses{.shape = {N}, .data = {}, .per_frame = true};
  for (int64_t n = 0; n < N; ++n) {
    double top = -INFINITY, total = 0;
    for (int64_t v = 0; v < V; ++v) top = std::max(top, x.at(n, v));
    for (int64_t v = 0; v < V; ++v) total += std::exp(x.at(n, v) - top);
    losses.data.push_back(top + std::log(total) - x.at(n, static_cast<int64_t>(in[1].data[n])));
  }
  return {losses};
}

std::vector<Array> inputs(const Case& c, Fill& fill) {
  const int64_t V = c.dims[0];
  Array labels{.shape = {c.T()}, .data = {}, .gradient = false, .per_frame = true, .on_host = true};
  for (int64_t n = 0; n < c.T(); ++n) labels.data.push_back(fill.below(static_cast<uint32_t>(V)));
  Array weights = fill.normal({c.T()});
  weights.gradient = false, weights.per_frame = weights.on_host = true;
  return {fill.frames(c, V, 3), labels, weights};
}

std::vector<Var> run(Tape& t, std::span<const Var> in, const Case&) {
  return {cross_entropy(t, in[0], as_integers(in[1]), as_floats(in[2]))};
}

const RegisterOp spec(OpSpec{
    .name = "cross_entropy",
    .cases = {{.frames = {1}, .dims = {1}},
              {.frames = {7, 1, 33}, .dims = {31}},
              {.frames = {31, 65}, .dims = {4}},
              {.frames = {20}, .dims = {104}},
              {.frames = {3, 9}, .dims = {520}},
              {.frames = {}, .dims = {8}},
              {.frames = {2000}, .dims = {504}, .bench = true}},
    .inputs = inputs,
    .oracle = oracle,
    .run = run,
    .cost =
        [](const Case& c) {
          const double n = static_cast<double>(c.T() * c.dims[0]);
          return Cost{.bytes = 4 * n, .flops = 16 * n};
        },
    .cuda = true,
    .terms = 520,
    // losses are f32; a gradient is rounded once
    .roundings = 0,
    .gradient_roundings = 1,
    .loss = true,
});

}  // namespace

TEST_CASE("cross_entropy: labels out of range, and logits far apart") {
  for (const Where where : everywhere()) {
    OpRun run(/*poison=*/true, 0, 0, where);
    Tape tape(run.ctx);
    const Array far{.shape = {2, 3}, .data = {0, 1000, 0, -1000, 0, 0}};
    const Tensor logits = run.write(far, where.compute());
    for (const int32_t bad : {-1, 3}) {
      const std::array<int32_t, 2> labels{0, bad};
      const Error e = test::error_of([&] { cross_entropy(tape, {logits}, labels, {}); });
      EXPECT(e.kind == Kind::input);
      EXPECT(e.message.find("row 1") != std::string::npos);
    }
    const std::array<int32_t, 2> labels{0, 2};
    const Array losses = OpRun::read(cross_entropy(tape, {logits}, labels, {}).value);
    EXPECT(losses.data[0] == doctest::Approx(1000));
    EXPECT(losses.data[1] == doctest::Approx(std::log(2.0)));
  }
}

TEST_CASE("cross_entropy: logits that are not finite") {
  const double infinity = std::numeric_limits<double>::infinity(), nan = std::nan("");
  for (const Where where : everywhere()) {
    OpRun run(/*poison=*/true, 0, 0, where);
    Tape tape(run.ctx);
    Array x{.shape = {4, 12}, .data = std::vector<double>(48)};
    x.at(0, 11) = nan, x.at(1, 0) = infinity;
    for (int64_t v = 0; v < 12; ++v) x.at(2, v) = -infinity;
    for (int64_t v = 0; v < 10; ++v) x.at(3, v) = -infinity;
    const Var logits = tape.variable(run.write(x, where.compute()));
    const std::array<int32_t, 4> labels{1, 1, 1, 11};
    const std::array<float, 4> weights{1, 1, 1, 1};
    const Var losses = cross_entropy(tape, logits, labels, weights);
    tape.loss(losses);
    tape.backward();
    const Array loss = OpRun::read(losses.value), dx = OpRun::read(tape.gradient(logits));
    for (int64_t n = 0; n < 3; ++n) EXPECT(std::isnan(loss.data[n]));
    EXPECT(loss.data[3] == doctest::Approx(std::log(2.0)));
    for (int64_t v = 0; v < 12; ++v)
      EXPECT(dx.at(3, v) == doctest::Approx(v < 10 ? 0 : v == 10 ? 0.5 : -0.5));
  }
}

}  // namespace sft
