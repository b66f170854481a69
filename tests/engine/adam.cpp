#include "engine/ops/adam.h"

#include <omp.h>

#include <cmath>
#include <limits>
#include <vector>

#include "engine/ops/grad_norm.h"
#include "tests/doctest.h"
#include "tests/op_spec.h"

using namespace sft;

namespace {

struct Moments {
  std::vector<double> p, m, v;
};

// train.py's update, in double.
void naive(Moments& s, const std::vector<double>& g, const AdamStep& a) {
  const double t = static_cast<double>(a.step);
  for (size_t i = 0; i < g.size(); ++i) {
    double grad = g[i] * a.clip_factor;
    if (a.decoupled)
      s.p[i] *= 1 - double{a.lr} * a.weight_decay;
    else
      grad += a.weight_decay * s.p[i];
    s.m[i] = a.beta1 * s.m[i] + (1 - double{a.beta1}) * grad;
    s.v[i] = a.beta2 * s.v[i] + (1 - double{a.beta2}) * grad * grad;
    s.p[i] -= a.lr / (1 - std::pow(double{a.beta1}, t)) * s.m[i] /
              (std::sqrt(s.v[i] / (1 - std::pow(double{a.beta2}, t))) + a.eps);
  }
}

Tensor view(std::vector<float>& x) {
  return Tensor(x.data(), Shape{static_cast<int64_t>(x.size())});
}

// Ten updates against the naive ones; returns the largest error of p in units of lr.
double ten_updates(int64_t n, AdamStep a) {
  OpRun run(/*poison=*/true);
  Fill fill(static_cast<uint64_t>(n));
  const Array start = fill.normal({n});
  Moments expected{start.data, std::vector<double>(n), std::vector<double>(n)};
  std::vector<float> p(start.data.begin(), start.data.end()), m(n), v(n);
  for (a.step = 1; a.step <= 10; ++a.step) {
    const Array grad = fill.normal({n}, 0.1);
    std::vector<float> g(grad.data.begin(), grad.data.end());
    naive(expected, grad.data, a);
    adam(run.ctx, view(p), view(g), view(m), view(v), a);
  }
  double worst = 0;
  for (int64_t i = 0; i < n; ++i) worst = std::max(worst, std::abs(p[i] - expected.p[i]) / a.lr);
  return worst;
}

}  // namespace

TEST_CASE("adam: ten updates against the reference") {
  for (const int64_t n : {1, 7, 31, 1000, 200003}) {
    DOCTEST_CAPTURE(n);
    for (const bool decoupled : {false, true}) {
      const AdamStep a{.lr = 1e-2f,
                       .beta1 = 0.9f,
                       .beta2 = 0.98f,
                       .eps = 1e-6f,
                       .weight_decay = 0.1f,
                       .decoupled = decoupled,
                       .clip_factor = 0.7f};
      // ten updates, three roundings of p each (the factor of p, its product, the difference) by
      // up to half an ulp of |p| < 8
      EXPECT(ten_updates(n, a) < 10 * 3 * 0x1p-22 / a.lr);
    }
  }
}

TEST_CASE("adam: what it refuses") {
  OpRun run(true);
  std::vector<float> four(4), five(5);
  const auto step = [&](std::vector<float>& g, int64_t number) {
    return test::error_of([&, number] {
      adam(run.ctx, view(four), view(g), view(four), view(four), AdamStep{.step = number});
    });
  };
  EXPECT(step(five, 1).message.find("adam: p is [4], g [5]") != std::string::npos);
  EXPECT(step(four, 0).message.find("step is 0") != std::string::npos);
}

TEST_CASE("grad_norm: sum of squares over ranges, empty ones too") {
  OpRun run(true);
  Fill fill(5);
  double expected = 0;
  std::vector<std::vector<float>> buffers;
  for (const int64_t n : {1, 0, 33, 100001}) {
    const Array a = fill.normal({n});
    for (const double x : a.data) expected += x * x;
    buffers.emplace_back(a.data.begin(), a.data.end());
  }
  std::vector<Tensor> ranges;
  for (std::vector<float>& b : buffers) ranges.push_back(view(b));
  EXPECT(grad_norm(run.ctx, ranges) == doctest::Approx(expected).epsilon(1e-13));
  EXPECT(grad_norm(run.ctx, {}) == 0);
  const int threads = omp_get_max_threads();
  const double some = grad_norm(run.ctx, ranges);
  omp_set_num_threads(1);
  EXPECT(grad_norm(run.ctx, ranges) == some);
  omp_set_num_threads(threads);
}

TEST_CASE("grad_norm: non-finite if any element is") {
  OpRun run(true);
  const float infinity = std::numeric_limits<float>::infinity();
  for (const float bad : {std::nanf(""), infinity, -infinity}) {
    for (const size_t at : {0, 40000, 99999}) {
      std::vector<float> x(100000, 1.0f);
      const Tensor range = view(x);
      EXPECT(std::isfinite(grad_norm(run.ctx, {&range, 1})));
      x[at] = bad;
      EXPECT(!std::isfinite(grad_norm(run.ctx, {&range, 1})));
    }
  }
  std::vector<float> large(1000, 3e38f);  // its square overflows f32
  const Tensor range = view(large);
  EXPECT(std::isfinite(grad_norm(run.ctx, {&range, 1})));
}
