#include <algorithm>
#include <cmath>

#include "autograd/functions.h"
#include "engine/cpu/gemm.h"
#include "tests/doctest.h"
#include "tests/op_spec.h"

namespace sft {
namespace {

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// One direction, weights w_ih, w_hh, b_ih, b_hh, into columns [first, first + H) of y.
void direction(const Array& x, std::span<const Array> w, const Segments& segments, bool backwards,
               int64_t first, Array& y) {
  const int64_t H = w[1].shape[1], K = x.shape[1];
  for (int b = 0; b < segments.batch(); ++b) {
    std::vector<double> h(H), c(H), z(4 * H);
    for (int64_t step = 0; step < segments.length(b); ++step) {
      const int64_t t = backwards ? segments.starts[b + 1] - 1 - step : segments.starts[b] + step;
      for (int64_t j = 0; j < 4 * H; ++j) {
        z[j] = w[2].data[j] + w[3].data[j];
        for (int64_t k = 0; k < K; ++k) z[j] += w[0].at(j, k) * x.at(t, k);
        for (int64_t k = 0; k < H; ++k) z[j] += w[1].at(j, k) * h[k];
      }
      for (int64_t j = 0; j < H; ++j) {
        c[j] = sigmoid(z[H + j]) * c[j] + sigmoid(z[j]) * std::tanh(z[2 * H + j]);
        h[j] = sigmoid(z[3 * H + j]) * std::tanh(c[j]);
        y.at(t, first + j) = h[j];
      }
    }
  }
}

// in: x, then four weights of each direction
std::vector<Array> oracle(std::span<const Array> in, const Case& c) {
  const int64_t H = in[2].shape[1], D = in.size() > 5 ? 2 : 1, T = in[0].shape[0];
  Array y{.shape = {T, D * H}, .data = std::vector<double>(T * D * H), .per_frame = true};
  for (int64_t d = 0; d < D; ++d)
    direction(in[0], in.subspan(1 + 4 * d, 4), c.segments(), d == 1, d * H, y);
  return {y};
}

// dims: width of x, units, directions
std::vector<Array> inputs(const Case& c, Fill& fill) {
  const int64_t K = c.dims[0], H = c.dims[1];
  std::vector<Array> in{fill.frames(c, K)};
  for (int64_t d = 0; d < c.dims[2]; ++d) {
    in.push_back(fill.normal({4 * H, K}, 1 / std::sqrt(K)));
    in.push_back(fill.normal({4 * H, H}, 1 / std::sqrt(H)));
    in.push_back(fill.normal({4 * H}, 0.5));
    in.push_back(fill.normal({4 * H}, 0.5));
  }
  return in;
}

LstmVars vars(std::span<const Var> in, size_t d) {
  const size_t i = 1 + 4 * d;
  return i < in.size() ? LstmVars{in[i], in[i + 1], in[i + 2], in[i + 3]} : LstmVars{};
}

std::vector<Var> run(Tape& t, std::span<const Var> in, const Case& c) {
  return {lstm(t, in[0], vars(in, 0), vars(in, 1), c.segments())};
}

const RegisterOp spec(OpSpec{
    .name = "lstm",
    .cases = {{.frames = {1}, .dims = {3, 1, 1}},
              {.frames = {7, 1, 12}, .dims = {5, 7, 2}},
              {.frames = {3, 9, 9, 1, 2, 9, 5, 4, 11}, .dims = {8, 33, 2}},
              {.frames = {5, 0, 6}, .dims = {17, 20, 1}},
              {.frames = {10, 4}, .dims = {6, 70, 2}},
              {.frames = {2, 1, 3, 1, 1, 2, 2, 1, 3, 2, 1, 1, 4, 1, 2, 3, 1, 2},
               .dims = {8, 16, 1}},
              {.frames = {}, .dims = {8, 4, 2}},
              {.frames = std::vector<int32_t>(16, 300), .dims = {512, 256, 2}, .bench = true}},
    .inputs = inputs,
    .oracle = oracle,
    .run = run,
    .cost =
        [](const Case& c) {
          const double T = static_cast<double>(c.T()), K = c.dims[0], H = c.dims[1], D = c.dims[2];
          return Cost{.bytes = 4 * T * (K + D * 6 * H), .flops = 8 * T * D * H * (K + H)};
        },
    .cuda = true,
    .narrow = {Math::fast16, Math::bf16},
    .terms = 70 * 12,  // the recurrence sums over units, frame after frame
    // h is rounded, and what an error of the frame before becomes; dgates are, and theirs go on
    // through w_hh (norm about 3: 4H x H of deviation 1 / sqrt(H)) and slopes of 1/4 at most
    .roundings = 2,
    .gradient_roundings = 6,
    .products = 2,  // of x, and what its error becomes in h
    .gradient_products = 2,
});

// y, and with dy = y the gradient of each input.
std::vector<Array> results_of(Where where, const std::vector<Array>& in, const Case& c) {
  OpRun run_on(/*poison=*/true, 0, 0, where);
  Tape tape(run_on.ctx);
  const std::vector<Var> placed = run_on.place(tape, in);
  const Var y = run(tape, placed, c)[0];
  tape.seed(y, y);
  tape.backward();
  std::vector<Array> results{OpRun::read(y)};
  for (const Var& v : placed) results.push_back(OpRun::read(tape.gradient(v)));
  return results;
}

}  // namespace

TEST_CASE("lstm: more units than a tile of the device, as on the CPU") {
  const Case c{.frames = {6, 3}, .dims = {8, 264, 2}};
  Fill fill(22);
  const std::vector<Array> in = inputs(c, fill);
  std::vector<std::vector<double>> first;
  for (const Where where : everywhere()) {
    if (where.compute() != Dtype::f32) continue;
    std::vector<std::vector<double>> results;
    for (const Array& result : results_of(where, in, c)) results.push_back(result.data);
    if (first.empty()) first = results;
    for (size_t i = 0; i < results.size(); ++i)
      EXPECT(std::ranges::equal(results[i], first[i], [](double a, double b) {
        return std::abs(a - b) < 1e-5 * (1 + std::abs(b));  // sums of 264 products, six frames on
      }));
  }
}

TEST_CASE("lstm: NaN of one utterance stays in it") {
  const Case c{.frames = {4, 2, 7}, .dims = {8, 12, 2}};
  for (const Where where : everywhere()) {
    Fill fill(23);
    std::vector<Array> in = inputs(c, fill), spoilt = in;
    std::fill_n(spoilt[0].data.begin() + 4 * 8, 2 * 8, NAN);
    const std::vector<Array> expected = results_of(where, in, c),
                             got = results_of(where, spoilt, c);
    for (size_t i = 0; i < 2; ++i)
      for (int64_t t = 0; t < 13; ++t)
        for (int64_t j = 0; j < expected[i].shape.back(); ++j) {
          const bool inside = t >= 4 && t < 6;
          EXPECT((inside ? std::isnan(got[i].at(t, j)) : got[i].at(t, j) == expected[i].at(t, j)));
        }
  }
}

TEST_CASE("lstm: as many matrix products for nine utterances as for one") {
  const auto products = [](const std::vector<int32_t>& frames) {
    const Case c{.frames = frames, .dims = {5, 7, 2}};
    Fill fill(21);
    OpRun run_on(/*poison=*/true);
    Tape tape(run_on.ctx);
    const std::vector<Var> in = run_on.place(tape, inputs(c, fill));
    const int64_t before = cpu::gemm_calls();
    const Var y = run(tape, in, c)[0];
    tape.seed(y, y);
    tape.backward();
    return cpu::gemm_calls() - before;
  };
  EXPECT(products({9}) == 8);  // in each direction: input, dx, dw_ih, dw_hh
  EXPECT(products({1, 1, 1, 1, 1, 1, 1, 1, 1}) == 8);
}

TEST_CASE("lstm: weights that do not fit") {
  OpRun run_on(/*poison=*/true);
  Tape tape(run_on.ctx);
  Context& ctx = run_on.ctx;
  const LstmVars good{{ctx.activation({8, 3})},
                      {ctx.activation({8, 2})},
                      {ctx.activation({8})},
                      {ctx.activation({8})}};
  LstmVars bad = good;
  bad.w_ih = {ctx.activation({8, 4})};
  const SegmentList list(std::vector<int32_t>{5});
  const Var x{ctx.activation({5, 3})};
  EXPECT(test::error_of([&] { lstm(tape, x, good, bad, list.view()); }).kind == Kind::internal);
  const SegmentList longer(std::vector<int32_t>{6});
  EXPECT(test::error_of([&] { lstm(tape, x, good, {}, longer.view()); }).kind == Kind::internal);
}

}  // namespace sft
