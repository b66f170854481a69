#include <cmath>

#include "autograd/functions.h"
#include "tests/doctest.h"
#include "tests/op_spec.h"

namespace sft {
namespace {

// in: L states [T, C], w [L]
std::vector<Array> oracle(std::span<const Array> in, bool normalize) {
  const size_t L = in.size() - 1;
  const int64_t T = in[0].shape[0], C = in[0].shape[1];
  double total = 0;
  for (double w : in[L].data) total += std::exp(w);
  Array y = in[0];
  std::fill(y.data.begin(), y.data.end(), 0.0);
  for (size_t l = 0; l < L; ++l)
    for (int64_t t = 0; t < T; ++t) {
      double mean = 0, variance = 0;
      for (int64_t c = 0; c < C; ++c) mean += in[l].at(t, c) / C;
      for (int64_t c = 0; c < C; ++c) variance += std::pow(in[l].at(t, c) - mean, 2) / C;
      const double rstd = 1 / std::sqrt(variance + 1e-5), share = std::exp(in[L].data[l]) / total;
      for (int64_t c = 0; c < C; ++c)
        y.at(t, c) += share * (normalize ? (in[l].at(t, c) - mean) * rstd : in[l].at(t, c));
    }
  return {y};
}

// dims: channels, states
OpSpec spec(const char* name, bool normalize) {
  return {
      .name = name,
      .cases = {{.frames = {1}, .dims = {48, 1}},
                {.frames = {7, 1, 33}, .dims = {33, 3}},
                {.frames = {31, 130}, .dims = {16, 13}},
                {.frames = {}, .dims = {8, 2}},
                {.frames = {2, 3},
                 .dims = {1280, 3}},  // wider than kernels with four vectors a lane
                {.frames = {812, 399, 1204}, .dims = {768, 13}, .bench = true}},
      .inputs =
          [](const Case& c, Fill& fill) {
            std::vector<Array> in;
            for (int64_t l = 0; l < c.dims[1]; ++l)  // quiet ones too: eps counts there
              in.push_back(fill.frames(c, c.dims[0], l % 3 == 1 ? 0.01 : 2));
            in.push_back(fill.normal({c.dims[1]}));
            return in;
          },
      .oracle = [=](std::span<const Array> in, const Case&) { return oracle(in, normalize); },
      .run = [=](Tape& t, std::span<const Var> in, const Case&) -> std::vector<Var> {
        return {weighted_sum(t, in.first(in.size() - 1), in.back(), normalize)};
      },
      .cost =
          [](const Case& c) {
            const double n = static_cast<double>(c.T() * c.dims[0]), L = c.dims[1];
            return Cost{.bytes = 4 * (L + 1) * n, .flops = 2 * L * n};
          },
      .cuda = true,
      // dw is a sum over all frames and channels, and a difference of such sums.
      .terms = 161 * 16,
      .step = 1e-6,  // small against the quiet states
  };
}

const RegisterOp plain(spec("weighted_sum", false));
const RegisterOp normalized(spec("weighted_sum_normalized", true));

}  // namespace

TEST_CASE("weighted_sum: states and weights that do not fit") {
  OpRun run(/*poison=*/true);
  Tape tape(run.ctx);
  const std::array<Var, 2> states{Var{run.ctx.activation({3, 4})}, Var{run.ctx.activation({2, 4})}};
  const Var w{run.ctx.activation({2})};
  EXPECT(test::error_of([&] { weighted_sum(tape, states, w, false); }).kind == Kind::internal);
  EXPECT(test::error_of([&] { weighted_sum(tape, std::span(states).first(1), w, false); }).kind ==
         Kind::internal);
}

}  // namespace sft
