#include "engine/ops/adam.h"

#include <omp.h>

#include <cmath>
#include <limits>
#include <vector>

#include "engine/cuda/emulator/thread_order.h"
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

Array constant(int64_t n, double value) {
  return {.shape = {n}, .data = std::vector<double>(n, value)};
}

// Ten updates against the naive ones; returns the largest error of p in units of lr. The buffers
// start `offset` elements behind an aligned address; what lies around them stays as it is.
double ten_updates(Where where, int64_t n, int64_t offset, AdamStep a) {
  OpRun run(/*poison=*/true, 0, 0, where);
  Fill fill(static_cast<uint64_t>(n));
  const auto placed = [&](const Array& values) {
    Array all = constant(offset + n + 4, 7);
    std::copy(values.data.begin(), values.data.end(), all.data.begin() + offset);
    return run.write(all, Dtype::f32);
  };
  const auto range = [&](Tensor all) { return all.slice(offset, n); };
  const Array start = fill.normal({n});
  Moments expected{start.data, std::vector<double>(n), std::vector<double>(n)};
  const Tensor p = placed(start), m = placed(constant(n, 0)), v = placed(constant(n, 0));
  for (a.step = 1; a.step <= 10; ++a.step) {
    const Array grad = fill.normal({n}, 0.1);
    naive(expected, grad.data, a);
    adam(run.ctx, range(p), range(placed(grad)), range(m), range(v), a);
  }
  for (const Tensor& all : {p, m, v}) {
    const Array whole = OpRun::read(all);
    for (int64_t i = 0; i < offset + n + 4; ++i)
      if (i < offset || i >= offset + n) EXPECT(whole.data[i] == 7);
  }
  const Array got = OpRun::read(range(p));
  double worst = 0;
  for (int64_t i = 0; i < n; ++i)
    worst = std::max(worst, std::abs(got.data[i] - expected.p[i]) / a.lr);
  return worst;
}

}  // namespace

TEST_CASE("adam: ten updates against the reference") {
  const auto check = [](Where where, int64_t n, int64_t offset) {
    DOCTEST_CAPTURE(n);
    DOCTEST_CAPTURE(offset);
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
      EXPECT(ten_updates(where, n, offset, a) < 10 * 3 * 0x1p-22 / a.lr);
    }
  };
  for (const Where where : everywhere())
    for (const int64_t n : {1, 7, 31, 1000}) check(where, n, 0), check(where, n, 1);
  check({}, 200003, 0);
}

TEST_CASE("adam: what it refuses") {
  OpRun run(true);
  const Tensor four = run.ctx.activation({4}), five = run.ctx.activation({5});
  const auto step = [&](Tensor g, int64_t number) {
    return test::error_of(
        [&, number] { adam(run.ctx, four, g, four, four, AdamStep{.step = number}); });
  };
  EXPECT(step(five, 1).message.find("adam: p is [4], g [5]") != std::string::npos);
  EXPECT(step(four, 0).message.find("step is 0") != std::string::npos);
}

TEST_CASE("grad_norm: sum of squares over ranges, empty ones too") {
  for (const Where where : everywhere()) {
    OpRun run(true, 0, 0, where);
    Fill fill(5);
    double expected = 0;
    std::vector<Tensor> ranges;
    for (const int64_t n : {1, 0, 33, 40001}) {
      const Array a = fill.normal({n});
      for (const double x : a.data) expected += x * x;
      ranges.push_back(run.write(a, Dtype::f32));
    }
    ranges.push_back(ranges.back().slice(3, 2222));  // starts anywhere
    for (const double x : OpRun::read(ranges.back()).data) expected += x * x;
    const double got = grad_norm(run.ctx, ranges);
    EXPECT(got == doctest::Approx(expected).epsilon(1e-13));
    EXPECT(grad_norm(run.ctx, {}) == 0);
    const int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    const cuda::emulator::OtherThreadOrder other;
    EXPECT(grad_norm(run.ctx, ranges) == got);
    omp_set_num_threads(threads);
  }
}

TEST_CASE("grad_norm: non-finite if any element is") {
  const double infinity = std::numeric_limits<double>::infinity();
  for (const Where where : everywhere()) {
    OpRun run(true, 0, 0, where);
    const auto norm = [&](const Array& x) {
      const Tensor range = run.write(x, Dtype::f32);
      return grad_norm(run.ctx, {&range, 1});
    };
    EXPECT(std::isfinite(norm(constant(40000, 1))));
    for (const double bad : {std::nan(""), infinity, -infinity}) {
      for (const size_t at : {0, 17000, 39999}) {
        Array x = constant(40000, 1);
        x.data[at] = bad;
        EXPECT(!std::isfinite(norm(x)));
      }
    }
    EXPECT(std::isfinite(norm(constant(1000, 3e38))));  // its square overflows f32
  }
}
