// Bounds stated in engine/cpu/vector_math-inl.h, on dense grids against libm in double, for every
// instruction set of this machine.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/engine/vector_math.cpp"
#include <hwy/foreach_target.h>

#include "engine/cpu/vector_math-inl.h"
#include "tests/doctest.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

template <Vec (*kFunction)(Vec)>
void apply(const float* x, int64_t n, float* y) {
  for_vectors(n,
              [&](int64_t i, int64_t left) { store(kFunction(load(x + i, left)), y + i, left); });
}

void apply_exp(const float* x, int64_t n, float* y) { apply<exp>(x, n, y); }
void apply_exp2(const float* x, int64_t n, float* y) { apply<exp2>(x, n, y); }
void apply_gelu(const float* x, int64_t n, float* y) { apply<gelu>(x, n, y); }
void apply_gelu_slope(const float* x, int64_t n, float* y) { apply<gelu_slope>(x, n, y); }
void apply_sigmoid(const float* x, int64_t n, float* y) { apply<sigmoid>(x, n, y); }
void apply_tanh(const float* x, int64_t n, float* y) { apply<tanh>(x, n, y); }
void apply_log(const float* x, int64_t n, float* y) { apply<log>(x, n, y); }

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <cmath>
#include <limits>
#include <numbers>
#include <string>
#include <vector>

namespace sft {
namespace {

HWY_EXPORT(apply_exp);
HWY_EXPORT(apply_exp2);
HWY_EXPORT(apply_gelu);
HWY_EXPORT(apply_gelu_slope);
HWY_EXPORT(apply_sigmoid);
HWY_EXPORT(apply_tanh);
HWY_EXPORT(apply_log);

void v_exp(const float* x, int64_t n, float* y) { HWY_DYNAMIC_DISPATCH(apply_exp)(x, n, y); }
void v_exp2(const float* x, int64_t n, float* y) { HWY_DYNAMIC_DISPATCH(apply_exp2)(x, n, y); }
void v_gelu(const float* x, int64_t n, float* y) { HWY_DYNAMIC_DISPATCH(apply_gelu)(x, n, y); }
void v_gelu_slope(const float* x, int64_t n, float* y) {
  HWY_DYNAMIC_DISPATCH(apply_gelu_slope)(x, n, y);
}
void v_sigmoid(const float* x, int64_t n, float* y) {
  HWY_DYNAMIC_DISPATCH(apply_sigmoid)(x, n, y);
}
void v_tanh(const float* x, int64_t n, float* y) { HWY_DYNAMIC_DISPATCH(apply_tanh)(x, n, y); }
void v_log(const float* x, int64_t n, float* y) { HWY_DYNAMIC_DISPATCH(apply_log)(x, n, y); }

using Apply = void (*)(const float*, int64_t, float*);
using Real = double (*)(double);

double real_gelu(double x) { return 0.5 * x * std::erfc(-x / std::sqrt(2.0)); }
double real_slope(double x) {
  return 0.5 * std::erfc(-x / std::sqrt(2.0)) +
         x * std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi);
}
double real_sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

// Largest |f(x) - real(x)| / scale(x, real(x)) over a grid of [low, high].
double worst(Apply f, Real real, double low, double high, double (*scale)(double, double)) {
  constexpr int64_t kPoints = 300007;  // no multiple of any vector: the tail is used
  std::vector<float> x(kPoints), y(kPoints);
  for (int64_t i = 0; i < kPoints; ++i)
    x[i] = static_cast<float>(low + (high - low) * static_cast<double>(i) / (kPoints - 1));
  f(x.data(), kPoints, y.data());
  double largest = 0;
  for (int64_t i = 0; i < kPoints; ++i) {
    const double expected = real(x[i]), e = std::abs(y[i] - expected) / scale(x[i], expected);
    largest = e <= largest ? largest : std::isfinite(e) ? e : INFINITY;
  }
  return largest;
}

double relative(double, double y) { return std::abs(y) + 1e-37; }
double absolute(double, double) { return 1; }
double of_size(double x, double) { return std::max(1.0, std::abs(x)); }
double ulp(double, double y) { return std::ldexp(1.0, std::max(std::ilogb(y), -126) - 23); }

float one(Apply f, float x) {
  float y = 0;
  f(&x, 1, &y);
  return y;
}

// Runs the test once for every instruction set that this machine and SFT_ISA leave.
template <class F>
void on_each_target(F&& test) {
  for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
    hwy::SetSupportedTargetsForTest(target);
    INFO(std::string(hwy::TargetName(target)));
    test(target);
  }
  hwy::SetSupportedTargetsForTest(0);
}

void check_bounds(int64_t target) {
  EXPECT(worst(v_exp, std::exp, -86.9, 88.7, ulp) <= 2);
  EXPECT(worst(v_exp, std::exp, -1, 1, ulp) <= 1.5);
  EXPECT(worst(v_exp2, std::exp2, -99.9, 127, ulp) <= 2);
  EXPECT(worst(v_gelu, real_gelu, -12, 12, of_size) <= 1.5e-7);
  EXPECT(worst(v_gelu, real_gelu, -1, 1, absolute) <= 1.5e-7);
  // Without fused multiply-add (SSE) the rounding of t^2 / 2 = 72 is added: 72 / 2^24.
  EXPECT(worst(v_gelu, real_gelu, -12, -1e-3, relative) <= (target > HWY_AVX2 ? 6e-6 : 1e-6));
  EXPECT(worst(v_gelu, real_gelu, -4.5, 12, ulp) <= (target == HWY_AVX3 ? 2.5 : 12));
  EXPECT(worst(v_gelu_slope, real_slope, -12, 12, absolute) <= 3e-7);
  EXPECT(worst(v_sigmoid, real_sigmoid, -80, 80, relative) <= 3e-7);
  EXPECT(worst(v_tanh, std::tanh, -10, 10, relative) <= 3e-7);
  EXPECT(worst(v_tanh, std::tanh, -0.01, 0.01, relative) <= 3e-7);
  EXPECT(worst(v_log, std::log, 1e-30, 1e-3, relative) <= 2e-7);
  EXPECT(worst(v_log, std::log, 0.5, 2.5, relative) <= 2e-7);
  EXPECT(worst(v_log, std::log, 1, 1e6, relative) <= 2e-7);
}

void check_ends() {
  const float inf = INFINITY, nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT(one(v_exp, 0) == 1);
  EXPECT(one(v_exp, -inf) == 0);
  EXPECT(one(v_exp, -1e30f) == 0);
  EXPECT(one(v_exp, inf) == inf);
  EXPECT(one(v_exp, 89) == inf);
  EXPECT(one(v_exp, 1e30f) == inf);
  EXPECT(one(v_exp2, 0) == 1);
  EXPECT(one(v_exp2, -1e30f) == 0x1p-100f);
  EXPECT(one(v_gelu, 0) == 0);
  EXPECT(one(v_gelu, 1e4f) == 1e4f);
  EXPECT(std::abs(one(v_gelu, -1e4f)) < 1e-30f);
  EXPECT(one(v_gelu_slope, 0) == doctest::Approx(0.5).epsilon(1e-7));
  EXPECT(one(v_gelu_slope, 1e4f) == 1);
  EXPECT(one(v_tanh, inf) == 1);
  EXPECT(one(v_tanh, -1e20f) == -1);
  EXPECT(one(v_sigmoid, -inf) == 0);
  EXPECT(one(v_sigmoid, inf) == 1);
  for (const Apply f : {v_exp, v_exp2, v_gelu, v_gelu_slope, v_tanh, v_sigmoid})
    EXPECT(std::isnan(one(f, nan)));
}

}  // namespace

TEST_CASE("vector math: bounds against libm") { on_each_target(check_bounds); }

TEST_CASE("vector math: ends of the range") {
  on_each_target([](int64_t) { check_ends(); });
}

}  // namespace sft
#endif
