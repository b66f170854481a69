// Runtime::gemm against plain loops: every operand's type, layout and end.
#include <cmath>

#include "engine/cuda/runtime.h"
#include "engine/ops/linear.h"
#include "tests/doctest.h"
#include "tests/op_spec.h"

namespace sft {
namespace {

constexpr int64_t kM = 7, kN = 13, kK = 20, kSpare = 3;  // kSpare: columns of a row not looked at

struct Operand {
  Array stored;
  bool transposed;
  double at(int64_t i, int64_t j) const { return transposed ? stored.at(j, i) : stored.at(i, j); }
};

// Small whole numbers: exact in every type, and so are their sums.
Array whole(Fill& fill, Shape shape) {
  Array a = fill.normal(shape);
  for (double& x : a.data) x = std::round(2 * x);
  return a;
}

Operand operand(Fill& fill, bool transposed, int64_t rows, int64_t columns) {
  const Shape stored = transposed ? Shape{columns, rows + kSpare} : Shape{rows, columns + kSpare};
  return {whole(fill, stored), transposed};
}

struct End {
  bool bias, beta, from;  // from: another matrix than C
};

void check_product(OpRun& run, bool transpose_a, bool transpose_b, Dtype in, Dtype out, End end) {
  Fill fill(7);
  const Operand a = operand(fill, transpose_a, kM, kK), b = operand(fill, transpose_b, kK, kN);
  const Array bias = whole(fill, {kN}), c = whole(fill, {kM, kN}), from = whole(fill, {kM, kN + 1});
  const Tensor A = run.write(a.stored, in), B = run.write(b.stored, in), C = run.write(c, out);
  cuda::Gemm g{.transpose_a = transpose_a,
               .transpose_b = transpose_b,
               .M = kM,
               .N = kN,
               .K = kK,
               .A = A.data,
               .lda = A.row_stride,
               .B = B.data,
               .ldb = B.row_stride,
               .in = in,
               .beta = end.beta ? 1.0f : 0.0f,
               .C = C.data,
               .ldc = C.row_stride,
               .out = out};
  if (end.from) g.from = run.write(from, out).data, g.ldfrom = kN + 1;
  if (end.bias) g.bias = run.write(bias, out).data;
  run.ctx.gpu->gemm(g);
  const Array ours = OpRun::read(C);
  for (int64_t m = 0; m < kM; ++m)
    for (int64_t n = 0; n < kN; ++n) {
      double sum = end.bias ? bias.data[n] : 0;
      for (int64_t k = 0; k < kK; ++k) sum += a.at(m, k) * b.at(k, n);
      if (end.beta) sum += end.from ? from.at(m, n) : c.at(m, n);
      EXPECT(ours.at(m, n) == sum);
    }
}

}  // namespace

TEST_CASE("cuda gemm: layouts, types and ends") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  OpRun run(/*poison=*/true, 0, 0, {Device::cuda, Math::exact});
  for (const auto& [in, out] :
       {std::pair(Dtype::f32, Dtype::f32), std::pair(Dtype::bf16, Dtype::f32),
        std::pair(Dtype::bf16, Dtype::bf16)})
    for (const bool transpose_a : {false, true})
      for (const bool transpose_b : {false, true})
        for (const End& end : {End{}, End{.beta = true}, End{.bias = true},
                               End{.bias = true, .beta = true, .from = true}})
          check_product(run, transpose_a, transpose_b, in, out, end);
}

TEST_CASE("cuda gemm: the bf16 copy of a parameter is made once, and again when it changes") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  OpRun run(/*poison=*/true, 0, 0, {Device::cuda, Math::bf16});
  const Tensor weight = run.write({.shape = {1, 1}, .data = {3}}, Dtype::f32);
  run.prepared.add_parameters(weight.data, weight.bytes());
  const auto product = [&] {
    const Tensor y =
        linear_forward(run.ctx, run.write({.shape = {1, 1}, .data = {2}}, Dtype::bf16), weight, {});
    return OpRun::read(y).data[0];
  };
  EXPECT(product() == 6);
  const float changed = 5;
  run.ctx.gpu->upload(weight.data, &changed, sizeof changed);
  EXPECT(product() == 6);
  run.prepared.weights_changed(weight.data, weight.bytes());
  EXPECT(product() == 10);
}

TEST_CASE("cuda gemm: a sum of nothing") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  OpRun run(/*poison=*/true, 0, 0, {Device::cuda, Math::exact});
  const Tensor C = run.ctx.activation({2, 3});
  cuda::Gemm g{.transpose_a = true, .M = 2, .N = 3, .K = 0, .A = C.data, .lda = 2};
  g.B = C.data, g.ldb = 3, g.C = C.data, g.ldc = 3;
  run.ctx.gpu->gemm(g);
  EXPECT(OpRun::read(C).data == std::vector<double>(6, 0.0));
  g.beta = 1;
  const Tensor kept = run.write({.shape = {2, 3}, .data = {1, 2, 3, 4, 5, 6}}, Dtype::f32);
  g.C = kept.data;
  run.ctx.gpu->gemm(g);
  EXPECT(OpRun::read(kept).data == std::vector<double>{1, 2, 3, 4, 5, 6});
}

}  // namespace sft
