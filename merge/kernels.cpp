#include "merge/kernels.h"

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
double square_sum(const double* x, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(SquareSum)(x, count);
}
double square_distance(const double* x, const double* y, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(SquareDistance)(x, y, count);
}

}  // namespace sft
#endif
