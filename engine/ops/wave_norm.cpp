#include "engine/ops/wave_norm.h"

#include <algorithm>
#include <cmath>

#include "engine/cpu/parallel.h"

namespace sft {
namespace {

// Two passes: the mean, then the centred squares. Eight sums side by side, so that the compiler may
// use vectors and the order is fixed.
template <class F>
double total(const float* x, int64_t n, F&& f) {
  double sums[8] = {};
  int64_t i = 0;
  for (; i + 8 <= n; i += 8)
    for (int lane = 0; lane < 8; ++lane) sums[lane] += f(x[i + lane]);
  for (int lane = 0; i < n; ++i, ++lane) sums[lane] += f(x[i]);
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

void normalise(const float* x, int64_t n, double eps, float* y) {
  const double mean = total(x, n, [](double v) { return v; }) / static_cast<double>(n);
  const double variance =
      total(x, n, [=](double v) { return (v - mean) * (v - mean); }) / static_cast<double>(n);
  const double rstd = 1 / std::sqrt(variance + eps);
  for (int64_t i = 0; i < n; ++i) y[i] = static_cast<float>((x[i] - mean) * rstd);
}

}  // namespace

Tensor wave_norm(Context& ctx, Tensor wave, Slots slots, double eps) {
  CHECK(wave.shape == Shape{slots.rows()}, "wave_norm: wave is {}, the slots have {} samples",
        wave.shape, slots.rows());
  const Tensor out = ctx.activation(wave.shape);
  const double samples = slots.rows();
  ProfileScope profile(ctx.dry ? nullptr : ctx.profile, "wave_norm", 8 * samples, 8 * samples);
  if (ctx.device == Device::cuda) return cuda::wave_norm(ctx, wave, slots, eps, out), out;
  if (ctx.dry) return out;
  cpu::parallel_for(slots.batch(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      float* y = out.f32() + slots.starts[b];
      normalise(wave.f32() + slots.starts[b], slots.valid[b], eps, y);
      std::fill(y + slots.valid[b], out.f32() + slots.starts[b + 1], 0.0f);
    }
  });
  return out;
}

}  // namespace sft
