#include "autograd/functions.h"
#include "tests/op_spec.h"

namespace sft {
namespace {

constexpr float kRate = 0.3f;

Dropout dropout_of(const Case& c) {
  return {.rate = c.training ? kRate : 0, .site = fnv1a("enc.3.attn.dropout")};
}

// in: x, weight, then bias and residual if there are any.
std::vector<Array> oracle(std::span<const Array> in, const Case& c, bool bias, bool residual) {
  const int64_t T = in[0].shape[0], K = in[0].shape[1], N = in[1].shape[0];
  Array y{.shape = {T, N}, .data = std::vector<double>(T * N), .per_frame = true};
  for (int64_t t = 0; t < T; ++t)
    for (int64_t n = 0; n < N; ++n) {
      double sum = bias ? in[2].data[n] : 0;
      for (int64_t k = 0; k < K; ++k) sum += in[0].at(t, k) * in[1].at(n, k);
      y.at(t, n) = sum * dropout_factor(c, dropout_of(c), t, n, N);
      if (residual) y.at(t, n) += in[2 + bias].at(t, n);
    }
  return {y};
}

OpSpec spec(const char* name, bool bias, bool residual) {
  return {
      .name = name,
      .cases = {{.frames = {1}, .dims = {48, 24}},
                {.frames = {7, 1, 33}, .dims = {33, 29}},
                {.frames = {7, 1, 33}, .dims = {33, 29}, .training = true, .first_utterance = 5},
                {.frames = {31, 130}, .dims = {16, 64}, .training = true},
                {.frames = {9}, .dims = {8, 264}, .training = true},
                {.frames = {}, .dims = {8, 8}},
                {.frames = {399}, .dims = {20, 1}},
                {.frames = {812, 399, 389}, .dims = {768, 768}, .bench = true},
                {.frames = {812, 399, 389}, .dims = {768, 768}, .bench = true, .training = true}},
      .inputs =
          [=](const Case& c, Fill& fill) {
            const int64_t K = c.dims[0], N = c.dims[1];
            std::vector<Array> in{fill.frames(c, K), fill.normal({N, K})};
            if (bias) in.push_back(fill.normal({N}));
            if (residual) in.push_back(fill.frames(c, N));
            return in;
          },
      .oracle = [=](std::span<const Array> in,
                    const Case& c) { return oracle(in, c, bias, residual); },
      .run = [=](Tape& t, std::span<const Var> in, const Case& c) -> std::vector<Var> {
        return {linear(t, in[0], in[1], bias ? in[2] : Var(), residual ? in[2 + bias] : Var(),
                       dropout_of(c), c.segments())};
      },
      .cost =
          [=](const Case& c) {
            const double T = static_cast<double>(c.T()), K = static_cast<double>(c.dims[0]),
                         N = static_cast<double>(c.dims[1]);
            return Cost{.bytes = 4 * (T * (K + N * (1 + residual)) + K * N),
                        .flops = 2 * T * K * N};
          },
      .cuda = true,
      .narrow = {Math::fast16, Math::bf16},
      .terms = 399,
      .roundings = 2,  // of the product and, where something drops, of the pass over it
      .gradient_products = 1,
  };
}

const RegisterOp plain(spec("linear_plain", false, false));
const RegisterOp biased(spec("linear", true, false));
const RegisterOp residual(spec("linear_residual", true, true));

}  // namespace
}  // namespace sft
