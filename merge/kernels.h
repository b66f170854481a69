// Loops over f64 values of a merge, compiled for each instruction set. Products and sums of what is
// written are never contracted, so it has the same bits on every machine; sums of squares may
// differ in their last bits.
#pragma once

#include <cstdint>

namespace sft {

void widen(const float* from, double* to, int64_t count);
void narrow(const double* from, float* to, int64_t count);  // to nearest even
// delta += theta - theta0
void add_difference(const double* theta, const double* theta0, double* delta, int64_t count);
// to = theta0 + alpha delta; theta0 itself (its sign too, if it is 0) where delta is 0
void step_from(const double* theta0, const double* delta, double alpha, double* to, int64_t count);
// f32 in and out, all at once: to = base + alpha * (tuned - base), rounded once; sums of squares.
struct StepSums {
  double base, difference, change, rounding;
};
StepSums step_f32(const float* base, const float* tuned, double alpha, float* to, int64_t count);
double square_sum(const double* x, int64_t count);
double square_distance(const double* x, const double* y, int64_t count);

}  // namespace sft
