// Products of 16-bit numbers against their definition, number by number.
#include "engine/cpu/narrow.h"

#include <cmath>
#include <limits>
#include <vector>

#include "engine/rng.h"
#include "tests/doctest.h"

using namespace sft;
using namespace sft::cpu;

namespace {

struct Matrix {
  int64_t rows, width;
  std::vector<float> data;
  float* row(int64_t r) { return data.data() + r * width; }
  Matrix transposed() {
    Matrix out{width, rows, std::vector<float>(data.size())};
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t k = 0; k < width; ++k) out.row(k)[r] = row(r)[k];
    return out;
  }
};

Matrix gaussian(int64_t rows, int64_t width, uint32_t seed) {
  Draws draws(seed, 0, 0, fnv1a("narrow"));
  Matrix out{rows, width, std::vector<float>(rows * width)};
  for (float& x : out.data) x = static_cast<float>(draws.normal());
  return out;
}

// Magnitudes of 0.25 to 1: none stands out.
Matrix random(int64_t rows, int64_t width, uint32_t seed) {
  Draws draws(seed, 0, 0, fnv1a("narrow.even"));
  Matrix out{rows, width, std::vector<float>(rows * width)};
  for (float& x : out.data)
    x = static_cast<float>((0.25 + 0.75 * draws.uniform()) * (draws.below(2) ? 1 : -1));
  return out;
}

// x [T, K], w [N, K] -> [T, N]; turned: both are given the other way round.
Matrix product(Math math, Matrix x, Matrix w, bool turned = false) {
  namespace n = narrow;
  const int64_t T = x.rows, K = x.width, N = w.rows;
  std::vector<char> left(n::row_bytes(T, K)), right(n::panel_bytes(N, K));
  const n::Rows rows = n::rows_in(left.data(), math, T, K);
  const n::Panels panels = n::panels_in(right.data(), math, N, K);
  Matrix xt = x.transposed(), wt = w.transposed();
  if (turned)
    for (int64_t r = 0; r < T; r += n::kTogether) {
      float sums[n::kTogether];
      n::pack_tiles({xt.row(0), T, K, 1, T}, r, rows, sums);
    }
  else
    for (int64_t r = 0; r < T; r += n::kTileRows)
      n::pack_tile({x.row(0), x.row(0) + T * K, K, K}, T, r, rows);
  for (int64_t c = 0; c < N; c += n::kTileColumns)
    n::pack_panel(turned ? n::Vectors{wt.row(0), N, K, 1, N} : n::Vectors{w.row(0), N, K, K, 1}, c,
                  panels);
  Matrix y{T, N, std::vector<float>(T * N)};
  for (int64_t r = 0; r < T; r += n::kTileRows)
    for (int64_t c = 0; c < N; c += n::kTileColumns) {
      float sums[n::kTileRows * n::kTileColumns];
      n::multiply(rows, r, panels, c, sums, n::kTileColumns);
      for (int64_t i = r; i < std::min(T, r + n::kTileRows); ++i)
        for (int64_t j = c; j < std::min(N, c + n::kTileColumns); ++j)
          y.row(i)[j] = sums[(i - r) * n::kTileColumns + j - c];
    }
  return y;
}

// The definition of fast16 at the top of engine/cpu/narrow.h, without outliers.
float fixed_point(const float* x, const float* w, int64_t K) {
  float total = 0;
  for (int64_t k = 0; k < K; k += narrow::kBlock) {
    const int64_t end = std::min(K, k + narrow::kBlock);
    float most[2] = {};
    for (int64_t i = k; i < end; ++i)
      most[0] = std::max(most[0], std::abs(x[i])), most[1] = std::max(most[1], std::abs(w[i]));
    const float sx = most[0] / 4095, sw = most[1] / 4095;
    int32_t sum = 0;
    for (int64_t i = k; i < end; ++i)
      sum += static_cast<int32_t>(std::lrint(x[i] * (1 / sx))) *
             static_cast<int32_t>(std::lrint(w[i] * (1 / sw)));
    total = std::fma(static_cast<float>(sum), sx * sw, total);
  }
  return total;
}

double exact(const float* x, const float* w, int64_t K) {
  double sum = 0;
  for (int64_t k = 0; k < K; ++k) sum += static_cast<double>(x[k]) * w[k];
  return sum;
}

// Root mean square of ours - exact, over that of the terms' root sum of squares.
double error(Matrix y, Matrix x, Matrix w) {
  double wrong = 0, size = 0;
  for (int64_t t = 0; t < y.rows; ++t)
    for (int64_t c = 0; c < y.width; ++c) {
      wrong += std::pow(y.row(t)[c] - exact(x.row(t), w.row(c), x.width), 2);
      for (int64_t k = 0; k < x.width; ++k)
        size += std::pow(static_cast<double>(x.row(t)[k]) * w.row(c)[k], 2);
    }
  return std::sqrt(wrong / size);
}

bool skipped(Math math) {
  if (narrow::available(math)) return false;
  test::skip("needs AVX-512 with VNNI and BF16");
  return true;
}

}  // namespace

TEST_CASE("narrow: fast16 is its definition, bit for bit") {
  if (skipped(Math::fast16)) return;
  for (const int64_t K : {1, 2, 127, 128, 129, 500}) {
    Matrix x = random(25, K, 1), w = random(70, K, 2);
    const Matrix y = product(Math::fast16, x, w);
    int64_t different = 0;
    for (int64_t t = 0; t < 25; ++t)
      for (int64_t c = 0; c < 70; ++c)
        different += y.data[t * 70 + c] != fixed_point(x.row(t), w.row(c), K);
    EXPECT_MESSAGE(different == 0, K, " deep: ", different, " numbers differ");
  }
}

TEST_CASE("narrow: errors of Gaussian numbers") {
  if (skipped(Math::fast16) || skipped(Math::bf16)) return;
  const Matrix x = gaussian(40, 768, 3), w = gaussian(64, 768, 4);
  EXPECT(error(product(Math::fast16, x, w), x, w) < 4e-4);
  EXPECT(error(product(Math::bf16, x, w), x, w) < 2.6e-3);
  EXPECT(error(product(Math::bf16, x, w), x, w) > 1e-3);  // it is bf16
}

TEST_CASE("narrow: matrices given the other way round, same bits") {
  for (const Math math : {Math::fast16, Math::bf16}) {
    if (skipped(math)) return;
    for (const int64_t K : {1, 129, 300}) {
      const Matrix x = random(31, K, 5), w = random(33, K, 6);
      EXPECT(product(math, x, w).data == product(math, x, w, true).data);
    }
  }
}

TEST_CASE("narrow: a number that stands out leaves the others their digits") {
  if (skipped(Math::fast16)) return;
  const int64_t K = 300;  // the last block is not whole
  Matrix x = random(13, K, 7);
  const Matrix w = random(32, K, 8);
  Matrix others = x;
  x.row(3)[0] = 1e4f, x.row(3)[K - 1] = -3e4f, others.row(3)[0] = others.row(3)[K - 1] = 0;
  Matrix both = product(Math::fast16, x, w), rest = product(Math::fast16, others, w);
  for (int64_t c = 0; c < 32; ++c) {
    const double apart = 1e4 * w.data[c * K] - 3e4 * w.data[c * K + K - 1];
    // the weights it meets are rounded: 1.4e-4 of the largest of 128
    EXPECT(std::abs(both.row(3)[c] - rest.row(3)[c] - apart) < 4e4 * 3.5 / 4095);
  }
  Matrix ones = w;
  std::fill(ones.data.begin(), ones.data.end(), 1.0f);  // held exactly
  both = product(Math::fast16, x, ones), rest = product(Math::fast16, others, ones);
  EXPECT(std::abs(both.row(3)[0] - rest.row(3)[0] + 2e4) < 1e-2);
}

TEST_CASE("narrow: what is not finite poisons its own products alone") {
  for (const Math math : {Math::fast16, Math::bf16}) {
    if (skipped(math)) return;
    for (const float bad :
         {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
      Matrix x = random(14, 200, 9), w = random(40, 200, 10);
      const Matrix clean = product(math, x, w);
      x.row(5)[130] = bad, w.row(35)[0] = bad;
      for (const bool turned : {false, true}) {
        const Matrix y = product(math, x, w, turned);
        for (int64_t t = 0; t < 14; ++t)
          for (int64_t c = 0; c < 40; ++c) {
            const float value = y.data[t * 40 + c];
            EXPECT((t == 5 || c == 35 ? !std::isfinite(value) : value == clean.data[t * 40 + c]));
          }
      }
    }
  }
}
