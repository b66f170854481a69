#include <cmath>
#include <deque>

#include "autograd/functions.h"
#include "engine/transfer.h"
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

// Of a pack, from rows inside of utterances.
std::vector<int32_t> rows_of_pack(std::span<const int32_t> rows, const Case& c) {
  std::vector<int32_t> out(rows.begin(), rows.end());
  const Segments segments = c.segments();
  for (int b = 0; b < segments.batch(); ++b)
    for (int64_t i = segments.starts[b] * c.dims[0]; i < segments.starts[b + 1] * c.dims[0]; ++i)
      out[i] += segments.starts[b];
  return out;
}

// y, q [N, D], rows [N, K] inside of each utterance. dims: K, D
std::vector<Array> oracle(std::span<const Array> in, const Case& c) {
  const int64_t N = in[0].shape[0], K = c.dims[0];
  const std::vector<int32_t> rows =
      rows_of_pack(std::vector<int32_t>(in[2].data.begin(), in[2].data.end()), c);
  Array logits{.shape = {N, 1 + K}, .data = {}, .per_frame = true};
  for (int64_t n = 0; n < N; ++n)
    for (int64_t k = -1; k < K; ++k) {
      const int64_t r = k < 0 ? n : rows[n * K + k];
      logits.data.push_back(product(in[0], n, in[1], r) / (norm(in[0], n) * norm(in[1], r)) /
                            double{kTemperature});
    }
  return {logits};
}

std::vector<Array> inputs(const Case& c, Fill& fill) {
  const int64_t K = c.dims[0], D = c.dims[1];
  Array rows{
      .shape = {c.T(), K}, .data = {}, .gradient = false, .per_frame = true, .on_host = true};
  for (const int32_t frames : c.frames)
    for (int64_t n = 0; n < frames; ++n)
      for (int64_t k = 0; k < K; ++k) {
        const uint32_t r = fill.below(static_cast<uint32_t>(frames - 1));
        rows.data.push_back(r + (r >= n ? 1 : 0));
      }
  return {fill.frames(c, D, 2), fill.frames(c, D), rows};
}

// Codes that are all different.
Tensor different(Context& ctx, int64_t N) {
  const Tensor picks = ctx.activation({N, 2}, Dtype::i32);
  std::vector<int32_t> values;
  for (int32_t n = 0; n < N; ++n) values.insert(values.end(), {7, n});
  if (!ctx.dry) write(ctx, values.data(), picks);
  return picks;
}

std::vector<Var> run(Tape& t, std::span<const Var> in, const Case& c) {
  static std::deque<NegativeList> kept;  // as long as any backward
  kept.emplace_back().assign(c.T(), c.dims[0], rows_of_pack(as_integers(in[2]), c));
  return {contrastive_logits(t, in[0], in[1], different(t.ctx, c.T()), kept.back().view(),
                             kTemperature)};
}

const RegisterOp spec(OpSpec{
    .name = "contrastive_logits",
    .cases = {{.frames = {1}, .dims = {0, 4}},
              {.frames = {2, 7, 33}, .dims = {3, 17}},
              {.frames = {31, 2}, .dims = {100, 8}},
              {.frames = {9}, .dims = {1, 257}},
              {.frames = {}, .dims = {5, 8}},
              {.frames = {399, 401}, .dims = {100, 256}, .bench = true}},
    .inputs = inputs,
    .oracle = oracle,
    .run = run,
    .cost =
        [](const Case& c) {
          const auto N = static_cast<double>(c.T()), K = static_cast<double>(c.dims[0]),
                     D = static_cast<double>(c.dims[1]);
          return Cost{.bytes = 4 * N * (1 + K + 2 * D), .flops = 2 * N * (1 + K) * D};
        },
    .cuda = true,
    .terms = 257,
    // logits are f32; a gradient is rounded once
    .roundings = 0,
    .gradient_roundings = 1,
});

}  // namespace

TEST_CASE("contrastive_logits: a negative of the same code is left out, going back too") {
  OpRun run(/*poison=*/true);
  Tape tape(run.ctx);
  Fill fill(3);
  std::vector<Array> in{fill.normal({3, 4}), fill.normal({3, 4})};
  for (Array& a : in) a.per_frame = true;
  const std::vector<Var> vars = run.place(tape, in);
  const Tensor picks = run.ctx.activation({3, 2}, Dtype::i32);
  const int32_t codes[] = {1, 2, 1, 3, 1, 2};  // rows 0 and 2 are the same
  write(run.ctx, codes, picks);
  NegativeList negatives;
  negatives.assign(3, 2, std::vector<int32_t>{1, 2, 0, 2, 0, 1});
  const Var logits = contrastive_logits(tape, vars[0], vars[1], picks, negatives.view(), 0.1f);
  const Array values = OpRun::read(logits);
  for (int64_t n = 0; n < 3; ++n)
    for (int64_t k = 0; k < 3; ++k)
      EXPECT(std::isinf(values.at(n, k)) == ((n == 0 && k == 2) || (n == 2 && k == 1)));
  // dlogits at the excluded ones alone: nothing arrives.
  Array dlogits{.shape = {3, 3}, .data = {0, 0, 5, 0, 0, 0, 0, 5, 0}};
  tape.seed(logits, run.write(dlogits, Dtype::f32));
  tape.backward();
  for (const Var& v : vars)
    for (const double x : OpRun::read(tape.gradient(v)).data) EXPECT(x == 0);
}

TEST_CASE("contrastive_logits: negatives know where they are used") {
  NegativeList list;
  list.assign(3, 2, std::vector<int32_t>{1, 2, 2, 0, 1, 1});
  const Negatives n = list.view();
  EXPECT(std::vector<int32_t>(n.starts.begin(), n.starts.end()) ==
         std::vector<int32_t>{0, 1, 4, 6});
  EXPECT(std::vector<int32_t>(n.uses.begin(), n.uses.end()) ==
         std::vector<int32_t>{3, 0, 4, 5, 1, 2});
}

}  // namespace sft
