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
  Array labels{.shape = {c.T()}, .data = {}, .gradient = false, .per_frame = true};
  for (int64_t n = 0; n < c.T(); ++n) labels.data.push_back(fill.below(static_cast<uint32_t>(V)));
  Array weights = fill.normal({c.T()});
  weights.gradient = false, weights.per_frame = true;
  return {fill.frames(c, V, 3), labels, weights};
}

std::vector<Var> run(Tape& t, std::span<const Var> in, const Case&) {
  const Tensor given = in[1];
  const auto N = static_cast<size_t>(given.count());
  auto* labels = t.ctx.activation(given.shape, Dtype::i32).as<int32_t>();
  for (size_t n = 0; n < N; ++n) labels[n] = static_cast<int32_t>(given.f32()[n]);
  return {cross_entropy(t, in[0], {labels, N}, {in[2].value.f32(), N})};
}

const RegisterOp spec(OpSpec{
    .name = "cross_entropy",
    .cases = {{.frames = {1}, .dims = {1}},
              {.frames = {7, 1, 33}, .dims = {31}},
              {.frames = {31, 65}, .dims = {4}},
              {.frames = {20}, .dims = {104}},
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
    .terms = 104,
    .loss = true,
});

}  // namespace

TEST_CASE("cross_entropy: labels out of range, and logits far apart") {
  OpRun run(/*poison=*/true);
  Tape tape(run.ctx);
  const Tensor logits = run.ctx.activation({2, 3});
  std::fill_n(logits.f32(), 6, 0.0f);
  for (const int32_t bad : {-1, 3}) {
    const std::array<int32_t, 2> labels{0, bad};
    const Error e = test::error_of([&] { cross_entropy(tape, {logits}, labels, {}); });
    EXPECT(e.kind == Kind::input);
    EXPECT(e.message.find("row 1") != std::string::npos);
  }
  logits.f32()[1] = 1000, logits.f32()[3] = -1000;
  const std::array<int32_t, 2> labels{0, 2};
  const Var losses = cross_entropy(tape, {logits}, labels, {});
  EXPECT(losses.value.f32()[0] == doctest::Approx(1000));
  EXPECT(losses.value.f32()[1] == doctest::Approx(std::log(2.0)));
}

}  // namespace sft
