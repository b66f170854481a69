#include "engine/ops/adam.h"

#include <omp.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "engine/cuda/emulator/thread_order.h"
#include "engine/formats/numbers.h"
#include "engine/ops/grad_norm.h"
#include "engine/transfer.h"
#include "tests/doctest.h"
#include "tests/op_spec.h"

using namespace sft;

namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Moments {
  std::vector<double> p, m, v;
};

// train.py's update, in double.
void naive(Moments& s, const std::vector<double>& g, const AdamRule& a, double norm, double t) {
  for (size_t i = 0; i < g.size(); ++i) {
    double grad = g[i] * std::min(1.0, a.clip / (norm + 1e-6));
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

template <class T>
Tensor number(OpRun& run, T value) {
  const Tensor to =
      run.ctx.activation({1}, sizeof(T) == 8 && std::is_integral_v<T> ? Dtype::i64 : Dtype::f64);
  write(run.ctx, &value, to);
  return to;
}

template <class T>
T value_of(OpRun& run, Tensor number) {
  T value;
  read(run.ctx, number, &value);
  return value;
}

std::vector<std::byte> bytes_of(OpRun& run, Tensor t) {
  std::vector<std::byte> bytes(t.bytes());
  read(run.ctx, t, bytes.data());
  return bytes;
}

// A range of n elements, `offset` of them behind an aligned address, in buffers of sevens.
struct Placed {
  OpRun& run;
  int64_t n, offset;
  std::vector<Tensor> wholes = {};

  Tensor operator()(const Array& values, Dtype dtype = Dtype::f32) {
    Array all = constant(offset + n + 4, 7);
    std::copy(values.data.begin(), values.data.end(), all.data.begin() + offset);
    wholes.push_back(run.write(all, dtype));
    return wholes.back().slice(offset, n);
  }
  void check_surroundings() const {
    for (const Tensor& all : wholes) {
      const Array whole = OpRun::read(all);
      for (int64_t i = 0; i < offset + n + 4; ++i)
        if (i < offset || i >= offset + n) EXPECT(whole.data[i] == 7);
    }
  }
};

void check_copy(OpRun& run, const AdamRange& range) {
  std::vector<float> p(range.p.count());
  std::vector<uint16_t> rounded(p.size()), copy(p.size());
  read(run.ctx, range.p, p.data());
  read(run.ctx, range.copy, copy.data());
  f32_to_bf16(p.data(), rounded.data(), range.p.count());
  EXPECT(copy == rounded);
}

// Ten updates against the naive ones; returns the largest error of p in units of lr.
double ten_updates(Where where, int64_t n, int64_t offset, const AdamRule& rule) {
  OpRun run(/*poison=*/true, 0, 0, where);
  Fill fill(static_cast<uint64_t>(n));
  Placed placed{run, n, offset};
  const Array start = fill.normal({n});
  Moments expected{start.data, std::vector<double>(n), std::vector<double>(n)};
  AdamRange range{.p = placed(start),
                  .g = {},
                  .m = placed(constant(n, 0)),
                  .v = placed(constant(n, 0)),
                  .steps = number<int64_t>(run, 0),
                  .copy = {}};
  if (where.compute() == Dtype::bf16) range.copy = placed(constant(n, 0), Dtype::bf16);
  const double norm = 10;
  for (int step = 1; step <= 10; ++step) {
    const Array grad = fill.normal({n}, 0.1);
    naive(expected, grad.data, rule, norm, step);
    range.g = placed(grad);
    adam(run.ctx, range, rule, number(run, norm), number(run, 1.0));
  }
  EXPECT(value_of<int64_t>(run, range.steps) == 10);
  placed.check_surroundings();
  if (range.copy) check_copy(run, range);
  const Array got = OpRun::read(range.p);
  double worst = 0;
  for (int64_t i = 0; i < n; ++i)
    worst = std::max(worst, std::abs(got.data[i] - expected.p[i]) / rule.lr);
  return worst;
}

}  // namespace

TEST_CASE("adam: ten updates against the reference, and the bf16 copy") {
  const auto check = [](Where where, int64_t n, int64_t offset) {
    DOCTEST_CAPTURE(n);
    DOCTEST_CAPTURE(offset);
    for (const bool decoupled : {false, true}) {
      const AdamRule rule{.lr = 1e-2f,
                          .beta1 = 0.9f,
                          .beta2 = 0.98f,
                          .eps = 1e-6f,
                          .weight_decay = 0.1f,
                          .decoupled = decoupled,
                          .clip = decoupled ? 7 : kInfinity};
      // ten updates, three roundings of p each (the factor of p, its product, the difference) by
      // up to half an ulp of |p| < 8
      EXPECT(ten_updates(where, n, offset, rule) < 10 * 3 * 0x1p-22 / rule.lr);
    }
  };
  for (const Where where : everywhere())
    for (const int64_t n : {1, 7, 31, 1000}) check(where, n, 0), check(where, n, 1);
  check({}, 200003, 0);
}

TEST_CASE("adam: a norm or a loss that is not finite leaves everything as it was") {
  for (const Where where : everywhere()) {
    OpRun run(/*poison=*/true, 0, 0, where);
    Fill fill(3);
    const int64_t n = 1030;
    const auto random = [&] { return run.write(fill.uniform({n}, 0.5, 1), Dtype::f32); };
    AdamRange range{random(), random(), random(), random(), number<int64_t>(run, 4), {}};
    if (where.compute() == Dtype::bf16) range.copy = run.write(constant(n, 3), Dtype::bf16);
    const auto everything = [&] {
      std::vector<std::byte> all;
      for (const Tensor& t : {range.p, range.m, range.v, range.steps, range.copy}) {
        if (!t) continue;
        const std::vector<std::byte> bytes = bytes_of(run, t);
        all.insert(all.end(), bytes.begin(), bytes.end());
      }
      return all;
    };
    const std::vector<std::byte> before = everything();
    const auto update = [&](double norm, double loss) {
      adam(run.ctx, range, {.lr = 1e-3f, .clip = 1}, number(run, norm), number(run, loss));
      return everything();
    };
    for (const double bad : {std::nan(""), kInfinity, -kInfinity}) {
      EXPECT(update(bad, 1) == before);
      EXPECT(update(1, bad) == before);
    }
    EXPECT(update(1, 1) != before);
    EXPECT(value_of<int64_t>(run, range.steps) == 5);
  }
}

// From zeros every product and sum of an update has one rounding, fused or not.
TEST_CASE("adam: bias corrections and the clip factor have the same bits on every device") {
  std::vector<float> expected;
  for (const Where where : everywhere()) {
    OpRun run(/*poison=*/true, 0, 0, where);
    std::vector<float> got;
    for (const int64_t done : {0, 1, 2, 9, 998, 123456}) {
      const Tensor p = run.write(constant(1, 0), Dtype::f32);
      const auto zero = [&] { return run.write(constant(1, 0), Dtype::f32); };
      adam(run.ctx,
           {p, run.write(constant(1, 0.3), Dtype::f32), zero(), zero(), number(run, done), {}},
           {.lr = 1e-3f, .eps = 0, .clip = 0.77},
           number(run, 3.0 + 0.1 * static_cast<double>(done)), number(run, 1.0));
      got.push_back(static_cast<float>(OpRun::read(p).data[0]));
    }
    if (expected.empty()) expected = got;
    EXPECT(got == expected);
    for (const float p : got) EXPECT((p < 0 && std::isfinite(p)));
  }
}

TEST_CASE("adam: what it refuses") {
  OpRun run(true);
  const Tensor four = run.ctx.activation({4}), five = run.ctx.activation({5});
  const Tensor one = number(run, 1.0), steps = number<int64_t>(run, 0);
  const auto said = [&](const AdamRange& range) {
    return test::error_of([&] { adam(run.ctx, range, {}, one, one); }).message;
  };
  EXPECT(said({four, five, four, four, steps, {}}).find("adam: p is [4], g [5]") !=
         std::string::npos);
  EXPECT(said({four, four, four, four, four, {}}).find("steps is [4]") != std::string::npos);
  EXPECT(said({four, four, four, four, steps, four}).find("copy is f32 [4]") != std::string::npos);
}

TEST_CASE("grad_norm: over ranges, empty ones too") {
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
    const auto norm = [&](std::span<const Tensor> of) {
      const Tensor to = number(run, -1.0);
      grad_norm(run.ctx, of, to);
      return value_of<double>(run, to);
    };
    const double got = norm(ranges);
    EXPECT(got == doctest::Approx(std::sqrt(expected)).epsilon(1e-13));
    EXPECT(norm({}) == 0);
    const int threads = omp_get_max_threads();
    omp_set_num_threads(1);
    const cuda::emulator::OtherThreadOrder other;
    EXPECT(norm(ranges) == got);
    omp_set_num_threads(threads);
  }
}

TEST_CASE("grad_norm: non-finite if any element is") {
  for (const Where where : everywhere()) {
    OpRun run(true, 0, 0, where);
    const auto norm = [&](const Array& x) {
      const Tensor range = run.write(x, Dtype::f32), to = number(run, 0.0);
      grad_norm(run.ctx, {&range, 1}, to);
      return value_of<double>(run, to);
    };
    EXPECT(std::isfinite(norm(constant(40000, 1))));
    for (const double bad : {std::nan(""), kInfinity, -kInfinity}) {
      for (const size_t at : {0, 17000, 39999}) {
        Array x = constant(40000, 1);
        x.data[at] = bad;
        EXPECT(!std::isfinite(norm(x)));
      }
    }
    EXPECT(std::isfinite(norm(constant(1000, 3e38))));  // its square overflows f32
  }
}
