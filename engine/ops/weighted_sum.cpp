#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/weighted_sum.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include "engine/cpu/norm-inl.h"
#include "engine/cpu/simd-inl.h"
#include "engine/ops/weighted_sum.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

Moments state_moments(const float* x, int64_t C, bool normalize) {
  return normalize ? moments(x, C, kStateNormEps) : Moments{0, 1};
}

// y = sum_l share_l n(x_l), one frame.
void weighted_row(const float* const* x, const float* shares, int64_t L, int64_t C, bool normalize,
                  float* y) {
  float scale[kMaxStates], mean[kMaxStates];
  for (int64_t l = 0; l < L; ++l) {
    const Moments m = state_moments(x[l], C, normalize);
    scale[l] = shares[l] * m.rstd, mean[l] = m.mean;
  }
  for_vectors(C, [&](int64_t i, int64_t n) {
    Vec total = zero();
    for (int64_t l = 0; l < L; ++l)
      total = hn::MulAdd(hn::Sub(load(x[l] + i, n), set(mean[l])), set(scale[l]), total);
    store(total, y + i, n);
  });
}

// <dy, n(x)> of one frame.
float state_dot(const float* dy, const float* x, int64_t C, bool normalize) {
  const Moments m = state_moments(x, C, normalize);
  Vec total = zero();
  for_vectors(C, [&](int64_t i, int64_t n) {
    total = hn::MulAdd(load(dy + i, n), hn::Sub(load(x + i, n), set(m.mean)), total);
  });
  return sum(total) * m.rstd;
}

// dx of one frame; g [C] is scratch.
void state_dx(const float* dy, const float* x, float share, int64_t C, bool normalize, float* g,
              float* dx, bool add) {
  float* to = normalize ? g : dx;
  const bool adds = add && !normalize;
  for_vectors(C, [&](int64_t i, int64_t n) {
    const Vec value = hn::Mul(load(dy + i, n), set(share));
    store(adds ? hn::Add(load(dx + i, n), value) : value, to + i, n);
  });
  if (normalize) norm_dx(g, x, nullptr, C, moments(x, C, kStateNormEps), dx, add);
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>
#include <array>

#include "engine/cpu/parallel.h"

namespace sft {
namespace {

HWY_EXPORT(weighted_row);
HWY_EXPORT(state_dot);
HWY_EXPORT(state_dx);

constexpr int64_t kRows = 64;  // of a chunk

void softmax(const float* w, int64_t L, float* shares) {
  const float most = *std::max_element(w, w + L);
  double total = 0;
  for (int64_t l = 0; l < L; ++l) total += std::exp(static_cast<double>(w[l]) - most);
  for (int64_t l = 0; l < L; ++l)
    shares[l] = static_cast<float>(std::exp(static_cast<double>(w[l]) - most) / total);
}

void write_dw(const double* partial, int64_t chunks, const float* shares, int64_t L, Grad dw) {
  std::array<double, kMaxStates> g{};
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    for (int64_t l = 0; l < L; ++l) g[l] += partial[chunk * L + l];
  double mean = 0;
  for (int64_t l = 0; l < L; ++l) mean += shares[l] * g[l];
  for (int64_t l = 0; l < L; ++l)
    dw.to.f32()[l] = static_cast<float>(shares[l] * (g[l] - mean)) + (dw.add ? dw.to.f32()[l] : 0);
}

}  // namespace

WeightedSumOut weighted_sum_forward(Context& ctx, std::span<const Tensor> states, Tensor w,
                                    bool normalize) {
  const auto L = static_cast<int64_t>(states.size());
  CHECK(L >= 1 && states.size() <= kMaxStates, "weighted_sum: {} states (expected 1 to {})", L,
        kMaxStates);
  CHECK(w.shape == Shape{L}, "weighted_sum: w is {}, there are {} states", w.shape, L);
  for (const Tensor& h : states)
    CHECK(h.shape == states[0].shape && h.dtype == states[0].dtype,
          "weighted_sum: states {} {} and {} {}", h.dtype, h.shape, states[0].dtype,
          states[0].shape);
  const int64_t T = states[0].shape[0], C = states[0].width();
  CHECK(ctx.device == Device::cpu || C <= 2048, "weighted_sum: {} channels, at most 2048", C);
  WeightedSumOut out{ctx.activation(states[0].shape, states[0].dtype), ctx.activation({L})};
  if (ctx.dry) return out;
  ProfileScope profile(ctx.profile, "weighted_sum", 2.0 * L * T * C, 4.0 * (L + 1) * T * C);
  if (ctx.device == Device::cuda)
    return cuda::weighted_sum_forward(ctx, states, w, normalize, out), out;
  softmax(w.f32(), L, out.shares.f32());
  cpu::parallel_for(T, kRows, [&](int64_t begin, int64_t end) {
    std::array<const float*, kMaxStates> rows;
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t l = 0; l < L; ++l) rows[l] = states[l].row(t);
      HWY_DYNAMIC_DISPATCH(weighted_row)
      (rows.data(), out.shares.f32(), L, C, normalize, out.y.row(t));
    }
  });
  return out;
}

void weighted_sum_backward(Context& ctx, Tensor dy, std::span<const Tensor> states, Tensor shares,
                           bool normalize, std::span<const Grad> dstates, Grad dw) {
  const auto L = static_cast<int64_t>(states.size());
  const int64_t T = dy.shape[0], C = dy.width(), chunks = (T + kRows - 1) / kRows;
  ProfileScope profile(ctx.profile, "weighted_sum.backward", 4.0 * L * T * C,
                       4.0 * (2 * L + 1) * T * C);
  if (ctx.device == Device::cuda)
    return cuda::weighted_sum_backward(ctx, dy, states, shares, normalize, dstates, dw);
  ScratchScope scratch(ctx.scratch);
  const Tensor partial = ctx.temporary({chunks * L}, Dtype::f64), rows = ctx.temporary({chunks, C});
  if (ctx.dry) return;
  cpu::parallel_for(T, kRows, [&](int64_t begin, int64_t end) {
    const int64_t chunk = begin / kRows;
    double* g = partial.as<double>() + chunk * L;
    std::fill_n(g, L, 0.0);
    for (int64_t t = begin; t < end; ++t)
      for (int64_t l = 0; l < L; ++l) {
        const float* x = states[l].row(t);
        if (dw) g[l] += HWY_DYNAMIC_DISPATCH(state_dot)(dy.row(t), x, C, normalize);
        const Grad& dx = dstates[l];
        if (dx) HWY_DYNAMIC_DISPATCH(state_dx)
        (dy.row(t), x, shares.f32()[l], C, normalize, rows.row(chunk), dx.to.row(t), dx.add);
      }
  });
  if (dw) write_dw(partial.as<double>(), chunks, shares.f32(), L, dw);
}

}  // namespace sft
#endif
