#include <cmath>

#include "autograd/functions.h"
#include "tests/doctest.h"
#include "tests/op_spec.h"

namespace sft {
namespace {

constexpr GumbelNoise kNoise{.start = 2, .decay = 0.9, .floor = 0.5, .site = fnv1a("gumbel")};

// x - ln(-ln u) of one row, in all groups.
std::vector<double> noisy(const Array& x, int64_t n, const Case& c) {
  const Segments segments = c.segments();
  int b = 0;
  while (segments.starts[b + 1] <= n) ++b;
  const int64_t codes = x.shape[1], calls = (codes + 3) / 4;
  std::vector<double> s;
  for (int64_t v = 0; v < codes; ++v) {
    const auto call = static_cast<uint32_t>((n - segments.starts[b]) * calls + v / 4);
    const PhiloxWords words = philox(kSpecSeed, call, static_cast<uint32_t>(segments.utterances[b]),
                                     kSpecUpdate, kNoise.site);
    const double u = ((words[static_cast<int>(v % 4)] >> 9) + 0.5) / (1 << 23);
    s.push_back(x.at(n, v) - std::log(-std::log(u)));
  }
  return s;
}

std::vector<double> softmax(std::span<const double> s) {
  const double tau = 2 * 0.9 * 0.9 * 0.9, top = *std::max_element(s.begin(), s.end());
  double total = 0;
  std::vector<double> p;
  for (const double v : s) p.push_back(std::exp((v - top) / tau)), total += p.back();
  for (double& v : p) v /= total;
  return p;
}

// x [N, G V], codebook [G V, d], x again: the point at which forward is hard, so that differences
// of the oracle are those of the straight-through estimate. dims: G, V, d
std::vector<Array> oracle(std::span<const Array> in, const Case& c) {
  const int64_t N = in[0].shape[0], G = c.dims[0], V = c.dims[1], d = c.dims[2];
  Array code{.shape = {N, G * d}, .data = {}, .per_frame = true};
  for (int64_t n = 0; n < N; ++n) {
    const std::vector<double> moved = noisy(in[0], n, c), fixed = noisy(in[2], n, c);
    for (int64_t g = 0; g < G; ++g) {
      const std::span here(fixed.data() + g * V, V);
      const auto soft = softmax({moved.data() + g * V, static_cast<size_t>(V)});
      const auto base = softmax(here);
      const auto pick = std::max_element(here.begin(), here.end()) - here.begin();
      for (int64_t k = 0; k < d; ++k) {
        double sum = in[1].at(g * V + pick, k);
        for (int64_t v = 0; v < V; ++v) sum += (soft[v] - base[v]) * in[1].at(g * V + v, k);
        code.data.push_back(sum);
      }
    }
  }
  return {code};
}

const RegisterOp spec(OpSpec{
    .name = "gumbel_quantise",
    .cases = {{.frames = {1}, .dims = {1, 1, 1}},
              {.frames = {7, 1, 33}, .dims = {2, 5, 3}, .first_utterance = 4},
              {.frames = {31}, .dims = {1, 33, 17}},
              {.frames = {2, 9}, .dims = {3, 40, 8}},
              {.frames = {}, .dims = {2, 4, 2}},
              {.frames = {399, 401}, .dims = {2, 320, 128}, .bench = true}},
    .inputs = [](const Case& c, Fill& fill) -> std::vector<Array> {
      const int64_t codes = c.dims[0] * c.dims[1];
      const Array x = fill.frames(c, codes, 2);
      Array base = x;
      base.gradient = false;
      return {x, fill.normal({codes, c.dims[2]}), base};
    },
    .oracle = oracle,
    .run = [](Tape& t, std::span<const Var> in, const Case& c) -> std::vector<Var> {
      return {
          gumbel_quantise(t, in[0], in[1], static_cast<int>(c.dims[0]), kNoise, c.segments()).code};
    },
    .cost =
        [](const Case& c) {
          const auto n = static_cast<double>(c.T() * c.dims[0]);
          return Cost{.bytes = 4 * n * static_cast<double>(3 * c.dims[1] + 2 * c.dims[2]),
                      .flops = 40 * n * static_cast<double>(c.dims[1])};
        },
    .cuda = true,
    .terms = 40,
});

}  // namespace

TEST_CASE("gumbel_quantise: without noise the largest logit is picked, the first of equals") {
  OpRun run(/*poison=*/true);
  Tape tape(run.ctx, /*recording=*/false);
  const std::vector<Array> in{{.shape = {2, 4}, .data = {1, 3, 3, -1, 0, 0, 0, 5}},
                              {.shape = {4, 1}, .data = {10, 11, 12, 13}}};
  const std::vector<Var> vars = run.place(tape, in);
  const SegmentList rows(std::vector<int32_t>{2});
  const GumbelCode out = gumbel_quantise(tape, vars[0], vars[1], 2, {}, rows.view());
  EXPECT(OpRun::read(out.code).data == std::vector<double>{11, 12, 10, 13});
  const auto* picks = out.picks.as<int32_t>();
  EXPECT(std::vector<int32_t>(picks, picks + 4) == std::vector<int32_t>{1, 0, 0, 1});
}

TEST_CASE("gumbel_quantise: codes are drawn with the probabilities of the softmax") {
  constexpr int32_t kRows = 20000;
  OpRun run(/*poison=*/true, 5, 7);
  Tape tape(run.ctx, /*recording=*/false);
  const double logits[] = {0, 1, 2};
  Array x{.shape = {kRows, 3}, .data = {}, .per_frame = true};
  for (int32_t n = 0; n < kRows; ++n) x.data.insert(x.data.end(), logits, logits + 3);
  const std::vector<Array> in{x, {.shape = {3, 1}, .data = {0, 1, 2}}};
  const std::vector<Var> vars = run.place(tape, in);
  const SegmentList rows(std::vector<int32_t>{kRows});
  const GumbelCode out = gumbel_quantise(tape, vars[0], vars[1], 1, kNoise, rows.view());
  double counts[3] = {};
  for (int32_t n = 0; n < kRows; ++n) ++counts[out.picks.as<int32_t>()[n]];
  const double total = 1 + std::exp(1.0) + std::exp(2.0);
  for (int v = 0; v < 3; ++v) {  // within five standard deviations
    const double p = std::exp(logits[v]) / total;
    EXPECT(std::abs(counts[v] / kRows - p) < 5 * std::sqrt(p * (1 - p) / kRows));
  }
}

TEST_CASE("gumbel_quantise: the temperature falls from its start to its floor") {
  EXPECT(kNoise.temperature(0) == 2);
  EXPECT(kNoise.temperature(1) == doctest::Approx(1.8));
  EXPECT(kNoise.temperature(1000) == 0.5);
}

}  // namespace sft
