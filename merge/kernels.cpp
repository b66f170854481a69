#include "merge/kernels.h"

#include <cstring>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "merge/kernels.cpp"
#include <hwy/foreach_target.h>
// after foreach_target
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace sft {
namespace HWY_NAMESPACE {

void Widen(const float* from, double* to, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) to[i] = from[i];
}

void Narrow(const double* from, float* to, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<float>(from[i]);
}

void AddDifference(const double* theta, const double* theta0, double* delta, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) delta[i] += theta[i] - theta0[i];
}

void StepFrom(const double* theta0, const double* delta, double alpha, double* to, int64_t count) {
#pragma omp simd
  for (int64_t i = 0; i < count; ++i) {
    const double moved = theta0[i] + alpha * delta[i];
    to[i] = delta[i] == 0 ? theta0[i] : moved;
  }
}

namespace hn = hwy::HWY_NAMESPACE;

StepSums StepF32(const float* base, const float* tuned, double alpha, float* to, int64_t count) {
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> narrow;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  const auto factor = hn::Set(d, alpha), zero = hn::Zero(d);
  auto of_base = zero, difference = zero, change = zero, rounding = zero;
  const auto add_square = [](auto x, auto& sum) { sum = hn::MulAdd(x, x, sum); };
  const auto step = [&](auto from, auto tuned_to) {
    const auto theta0 = hn::PromoteTo(d, from);
    const auto delta = hn::Sub(hn::PromoteTo(d, tuned_to), theta0);
    const auto moved = hn::Add(theta0, hn::Mul(factor, delta));
    const auto exact = hn::IfThenElse(hn::Eq(delta, zero), theta0, moved);
    const auto rounded = hn::DemoteTo(narrow, exact);
    const auto stored = hn::PromoteTo(d, rounded);
    add_square(theta0, of_base), add_square(delta, difference);
    add_square(hn::Sub(stored, theta0), change), add_square(hn::Sub(stored, exact), rounding);
    return rounded;
  };
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    hn::StoreU(step(hn::LoadU(narrow, base + i), hn::LoadU(narrow, tuned + i)), narrow, to + i);
  if (i < count) {  // what is left, filled up with zeros, which add nothing
    float ends[2][HWY_MAX_BYTES / sizeof(double)] = {}, result[HWY_MAX_BYTES / sizeof(double)];
    const size_t bytes = static_cast<size_t>(count - i) * sizeof(float);
    std::memcpy(ends[0], base + i, bytes), std::memcpy(ends[1], tuned + i, bytes);
    hn::StoreU(step(hn::LoadU(narrow, ends[0]), hn::LoadU(narrow, ends[1])), narrow, result);
    std::memcpy(to + i, result, bytes);
  }
  const auto sum = [&](auto x) { return hn::GetLane(hn::SumOfLanes(d, x)); };
  return {sum(of_base), sum(difference), sum(change), sum(rounding)};
}

double SquareSum(const double* x, int64_t count) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) sum += x[i] * x[i];
  return sum;
}

double SquareDistance(const double* x, const double* y, int64_t count) {
  double sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < count; ++i) {
    const double d = x[i] - y[i];
    sum += d * d;
  }
  return sum;
}

}  // namespace HWY_NAMESPACE
}  // namespace sft
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace sft {

HWY_EXPORT(Widen);
HWY_EXPORT(Narrow);
HWY_EXPORT(AddDifference);
HWY_EXPORT(StepFrom);
HWY_EXPORT(StepF32);
HWY_EXPORT(SquareSum);
HWY_EXPORT(SquareDistance);

void widen(const float* from, double* to, int64_t count) {
  HWY_DYNAMIC_DISPATCH(Widen)(from, to, count);
}
void narrow(const double* from, float* to, int64_t count) {
  HWY_DYNAMIC_DISPATCH(Narrow)(from, to, count);
}
void add_difference(const double* theta, const double* theta0, double* delta, int64_t count) {
  HWY_DYNAMIC_DISPATCH(AddDifference)(theta, theta0, delta, count);
}
void step_from(const double* theta0, const double* delta, double alpha, double* to, int64_t count) {
  HWY_DYNAMIC_DISPATCH(StepFrom)(theta0, delta, alpha, to, count);
}
StepSums step_f32(const float* base, const float* tuned, double alpha, float* to, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(StepF32)(base, tuned, alpha, to, count);
}
double square_sum(const double* x, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(SquareSum)(x, count);
}
double square_distance(const double* x, const double* y, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(SquareDistance)(x, y, count);
}

}  // namespace sft
#endif
