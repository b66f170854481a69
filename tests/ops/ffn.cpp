#include <cmath>

#include "autograd/functions.h"
#include "tests/op_spec.h"

namespace sft {
namespace {

Dropout inside(const Case& c) {
  return {.rate = c.training ? 0.2f : 0, .site = fnv1a("enc.3.ffn.act.dropout")};
}

Dropout outside(const Case& c) {
  return {.rate = c.training ? 0.1f : 0, .site = fnv1a("enc.3.ffn.dropout")};
}

double gelu(double x) { return x / 2 * std::erfc(-x / std::sqrt(2.0)); }

// in: x, up weight and bias, down weight and bias, perhaps residual.
std::vector<Array> oracle(std::span<const Array> in, const Case& c) {
  const int64_t T = in[0].shape[0], C = in[0].shape[1], F = in[1].shape[0];
  Array y{.shape = {T, C}, .data = std::vector<double>(T * C), .per_frame = true};
  std::vector<double> act(F);
  for (int64_t t = 0; t < T; ++t) {
    for (int64_t f = 0; f < F; ++f) {
      double pre = in[2].data[f];
      for (int64_t k = 0; k < C; ++k) pre += in[0].at(t, k) * in[1].at(f, k);
      act[f] = gelu(pre) * dropout_factor(c, inside(c), t, f, F);
    }
    for (int64_t n = 0; n < C; ++n) {
      double sum = in[4].data[n];
      for (int64_t f = 0; f < F; ++f) sum += act[f] * in[3].at(n, f);
      y.at(t, n) = sum * dropout_factor(c, outside(c), t, n, C);
      if (in.size() > 5) y.at(t, n) += in[5].at(t, n);
    }
  }
  return {y};
}

OpSpec spec(const char* name, bool residual) {
  return {
      .name = name,
      .cases = {{.frames = {1}, .dims = {24, 48}},
                {.frames = {7, 1, 33}, .dims = {17, 33}},
                {.frames = {7, 1, 33}, .dims = {17, 33}, .training = true, .first_utterance = 5},
                {.frames = {31, 399, 640}, .dims = {8, 16}, .training = true},  // two blocks
                {.frames = {9}, .dims = {8, 264}, .training = true},
                {.frames = {}, .dims = {8, 8}},
                {.frames = {812, 399, 389}, .dims = {768, 3072}, .bench = true},
                {.frames = {812, 399, 389}, .dims = {768, 3072}, .bench = true, .training = true}},
      .inputs =
          [=](const Case& c, Fill& fill) {
            const int64_t C = c.dims[0], F = c.dims[1];
            const double deviation = 1 / std::sqrt(static_cast<double>(C));
            std::vector<Array> in{fill.frames(c, C), fill.normal({F, C}, deviation),
                                  fill.normal({F}), fill.normal({C, F}, deviation),
                                  fill.normal({C})};
            if (residual) in.push_back(fill.frames(c, C));
            return in;
          },
      .oracle = oracle,
      .run = [=](Tape& t, std::span<const Var> in, const Case& c) -> std::vector<Var> {
        return {ffn(t, in[0], in[1], in[2], in[3], in[4], residual ? in[5] : Var(), inside(c),
                    outside(c), c.segments())};
      },
      .cost =
          [](const Case& c) {
            const double T = static_cast<double>(c.T()), C = static_cast<double>(c.dims[0]),
                         F = static_cast<double>(c.dims[1]);
            return Cost{.bytes = 4 * (T * (3 * C + F) + 2 * C * F), .flops = 4 * T * C * F};
          },
      .cuda = true,
      .narrow = {Math::fast16, Math::bf16},
      .terms = 600,
      // Forward: pre, act, the second product, the pass over it. Back: dy times the mask, d act,
      // act or dpre (which hold pre's), and the gradient.
      .roundings = 4,
      .gradient_roundings = 5,
      .products = 2,
      .gradient_products = 3,  // pre (in the slope), dact, the gradient
  };
}

const RegisterOp plain(spec("ffn_plain", false));
const RegisterOp residual(spec("ffn", true));

}  // namespace
}  // namespace sft
