#include "engine/cpu/gemm.h"

#include "engine/cpu/rows.h"
#include "engine/formats/numbers.h"

#include <cmath>

#include "tests/doctest.h"
#include "tests/op_spec.h"

using namespace sft;

namespace {

struct Made {
  OpRun run{/*poison=*/true};
  Fill fill{7};

  // [T, width] inside rows of `stride` numbers.
  Tensor matrix(int64_t T, int64_t width, int64_t stride) {
    const Tensor whole = run.ctx.activation({T, stride});
    for (int64_t i = 0; i < whole.count(); ++i)
      whole.f32()[i] = static_cast<float>(fill.normal({1}).data[0]);
    return whole.columns(stride - width, width);
  }
};

double gelu(double x) { return x / 2 * std::erfc(-x / std::sqrt(2.0)); }

// What matmul promises, for element (t, n), in double.
struct Expected {
  Tensor x, weight, bias, residual;
  bool gelu = false;

  double at(int64_t t, int64_t n) const {
    double y = bias ? bias.f32()[n] : 0;
    for (int64_t k = 0; k < x.width(); ++k) y += double{x.row(t)[k]} * weight.row(n)[k];
    if (gelu) y = ::gelu(y);
    return residual ? y + residual.row(t)[n] : y;
  }
};

// Largest error, relative to the value and to the size of a sum of K products.
double worst(const Expected& e, Tensor y) {
  const double size = std::sqrt(static_cast<double>(e.x.width()));
  double worst = 0;
  for (int64_t t = 0; t < y.rows(); ++t)
    for (int64_t n = 0; n < y.width(); ++n) {
      const double error = std::abs(y.row(t)[n] - e.at(t, n)) / (std::abs(e.at(t, n)) + size);
      worst = error <= worst ? worst : std::isfinite(error) ? error : INFINITY;
    }
  return worst;
}

// Rounding of the sum, and GELU's error.
double allowed(int64_t K) { return (8 + 2 * std::sqrt(static_cast<double>(K))) * 0x1p-24 + 1e-7; }

}  // namespace

TEST_CASE("gemm: forward products, all endings, strided rows, any number of rows") {
  for (const int64_t T : {1, 7, 31, 33, 300})
    for (const auto& [N, K] : {std::pair{29, 48}, {64, 33}, {1, 16}})
      for (int option = 0; option < 16; ++option) {
        Made m;
        const int64_t stride = option & 8 ? 2 * K : K;
        const Tensor x = m.matrix(T, K, stride), weight = m.matrix(N, K, stride);
        const Tensor bias = option & 1 ? m.matrix(1, N, N).reshaped({N}) : Tensor();
        const Tensor residual = option & 2 ? m.matrix(T, N, N) : Tensor();
        const Tensor y = m.run.ctx.activation({T, N});
        cpu::matmul(x, cpu::pack_weight(m.run.ctx, weight), y,
                    {.bias = bias, .gelu = (option & 4) != 0, .residual = residual});
        INFO("T ", T, " N ", N, " K ", K, " option ", option);
        EXPECT(worst({x, weight, bias, residual, (option & 4) != 0}, y) <= allowed(K));
        for (int64_t t = T; t < bucket_rows(T); ++t) EXPECT(y.row(t)[N - 1] == 0);
      }
}

TEST_CASE("gemm: a product that adds to what is there") {
  for (const bool with_gelu : {false, true}) {
    Made m;
    const Tensor x = m.matrix(33, 40, 40), weight = m.matrix(24, 40, 40),
                 bias = m.matrix(1, 24, 24);
    const Tensor before = m.matrix(33, 24, 24), y = m.run.ctx.activation({33, 24});
    std::copy_n(before.f32(), before.count(), y.f32());
    cpu::matmul(x, cpu::pack_weight(m.run.ctx, weight), y,
                {.bias = bias.reshaped({24}), .gelu = with_gelu, .residual = y});
    EXPECT(worst({x, weight, bias.reshaped({24}), before, with_gelu}, y) <= allowed(40));
  }
}

TEST_CASE("gemm: sums in several parts, more columns than a piece has") {
  Made m;
  const Tensor x = m.matrix(130, 1100, 1100), weight = m.matrix(790, 1100, 1100);
  const Tensor y = m.run.ctx.activation({130, 790});
  cpu::matmul(x, cpu::pack_weight(m.run.ctx, weight), y);
  EXPECT(worst({x, weight, {}, {}}, y) <= allowed(1100));
}

TEST_CASE("gemm: a row has the same bits for every number of rows") {
  for (const Math math : {Math::exact, Math::fast16, Math::bf16}) {
    if (math != Math::exact && !cpu::narrow::available(math))
      return test::skip("needs AVX-512 with VNNI and BF16");
    Made m;
    m.run.ctx.math = math;
    const Tensor x = m.matrix(400, 96, 96), weight = m.matrix(80, 96, 96);
    x.row(57)[3] = 1e5f;  // stands out
    const cpu::PackedWeight packed = cpu::pack_weight(m.run.ctx, weight);
    const Tensor all = m.run.ctx.activation({400, 80});
    cpu::matmul(x, packed, all);
    for (const int64_t T : {1, 7, 100, 250, 399}) {
      const Tensor y = m.run.ctx.activation({T, 80});
      cpu::matmul(x.slice(0, T), packed, y);
      EXPECT(std::equal(y.f32(), y.f32() + T * 80, all.f32()));
    }
  }
}

TEST_CASE("gemm: packed once for a parameter, again when it changed") {
  Made m;
  const Tensor weight = m.matrix(24, 40, 40), x = m.matrix(5, 40, 40);
  m.run.prepared.add_parameters(weight.data, weight.bytes());
  const float* first = cpu::pack_weight(m.run.ctx, weight).data;
  weight.f32()[0] += 1;
  const Tensor y = m.run.ctx.activation({5, 24});
  EXPECT(cpu::pack_weight(m.run.ctx, weight).data == first);
  m.run.prepared.weights_changed(weight.data, weight.bytes());
  cpu::matmul(x, cpu::pack_weight(m.run.ctx, weight), y);
  EXPECT(worst({x, weight, {}, {}}, y) <= allowed(40));
  EXPECT(cpu::pack_weight(m.run.ctx, weight.slice(0, 8)).data != first);
}

// Blocks of columns are the size of a cache: of 4000 columns there are several.
TEST_CASE("gemm: a weight in a narrow type is its wide one, to the last bit") {
  for (const Dtype dtype : {Dtype::f16, Dtype::bf16, Dtype::q8_0})
    for (const auto& [N, K] : {std::pair{70, 64}, {4000, 1056}}) {
      Made m;
      const Tensor x = m.matrix(9, K, K), weight = m.matrix(N, K, K);
      const Tensor bias = m.matrix(1, N, N).reshaped({N}), residual = m.matrix(9, N, N + 3);
      std::vector<std::byte> bytes(bytes_of(dtype, weight.count()));
      from_f32(weight.f32(), dtype, bytes.data(), weight.count());
      to_f32(dtype, bytes.data(), weight.f32(), weight.count());
      const Tensor narrow(bytes.data(), {N, K}, dtype);
      const Tensor y = m.run.ctx.activation({9, N}), expected = m.run.ctx.activation({9, N});
      const cpu::MatmulEnd end{.bias = bias, .gelu = true, .residual = residual};
      cpu::matmul(x, cpu::pack_weight(m.run.ctx, weight), expected, end);
      cpu::matmul(x, cpu::pack_weight(m.run.ctx, narrow), y, end);
      EXPECT(std::equal(y.f32(), y.f32() + y.count(), expected.f32()));
    }
}

TEST_CASE("gemm: gradients of a product, written and added to") {
  for (const int64_t T : {0, 1, 70, 131}) {
    Made m;
    const Tensor dy = m.matrix(T, 24, 30), x = m.matrix(T, 40, 44), weight = m.matrix(24, 40, 40);
    const Tensor dx = m.run.ctx.activation({T, 40}), dw = m.run.ctx.activation({24, 40});
    const Tensor db = m.run.ctx.activation({24});
    const cpu::BackwardWeight packed = cpu::pack_backward(m.run.ctx, weight, T, true, true);
    for (const bool add : {false, true}) {
      cpu::matmul_dx(dy, packed, {dx, add});
      cpu::matmul_dweight(dy, x, packed, {dw, add});
      cpu::sum_rows(dy, {db, add});
    }
    double error = 0;
    const auto compare = [&](float ours, double expected) {
      const double e = std::abs(ours - 2 * expected);
      error = e <= error ? error : std::isfinite(e) ? e : INFINITY;
    };
    for (int64_t t = 0; t < T; ++t)
      for (int64_t k = 0; k < 40; ++k) {
        double sum = 0;
        for (int64_t n = 0; n < 24; ++n) sum += double{dy.row(t)[n]} * weight.row(n)[k];
        compare(dx.row(t)[k], sum);
      }
    for (int64_t n = 0; n < 24; ++n) {
      double total = 0;
      for (int64_t t = 0; t < T; ++t) total += dy.row(t)[n];
      compare(db.f32()[n], total);
      for (int64_t k = 0; k < 40; ++k) {
        double sum = 0;
        for (int64_t t = 0; t < T; ++t) sum += double{dy.row(t)[n]} * x.row(t)[k];
        compare(dw.row(n)[k], sum);
      }
    }
    // The sums are of up to 131 products, about 30 in size, and doubled.
    EXPECT(error <= 100 * allowed(T + 40));
  }
}

TEST_CASE("gemm: wrong shapes are named") {
  Made m;
  const Tensor x = m.matrix(5, 40, 40), y = m.run.ctx.activation({5, 24});
  const cpu::PackedWeight packed = cpu::pack_weight(m.run.ctx, m.matrix(24, 41, 41));
  EXPECT(test::error_of([&] { cpu::matmul(x, packed, y); }).message.find("[24, 41]") !=
         std::string::npos);
}
