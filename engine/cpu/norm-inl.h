// Layer norm of one row, shared by the ops that normalise. Included once per target, as
// simd-inl.h is.
#if defined(SFT_NORM_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SFT_NORM_INL_H
#undef SFT_NORM_INL_H
#else
#define SFT_NORM_INL_H
#endif

#include <cmath>

#include "engine/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

struct Moments {
  float mean, rstd;
};

// Centred variance: two passes over the row.
inline Moments moments(const float* x, int64_t C, float eps) {
  Vec total = zero();
  for_vectors(C, [&](int64_t i, int64_t n) { total = hn::Add(total, load(x + i, n)); });
  const float mean = sum(total) / static_cast<float>(C);
  Vec square = zero();
  for_vectors(C, [&](int64_t i, int64_t n) {
    const Vec centred =
        hn::IfThenElseZero(hn::FirstN(Lanes(), n), hn::Sub(load(x + i, n), set(mean)));
    square = hn::MulAdd(centred, centred, square);
  });
  return {mean, 1 / std::sqrt(sum(square) / static_cast<float>(C) + eps)};
}

// dx = rstd (g - mean(g) - xhat mean(g xhat)), g = dy * weight, xhat = (x - mean) rstd.
inline void norm_dx(const float* dy, const float* x, const float* weight, int64_t C, Moments m,
                    float* dx, bool add) {
  const auto g = [&](int64_t i, int64_t n) {
    const Vec v = load(dy + i, n);
    return weight ? hn::Mul(v, load(weight + i, n)) : v;
  };
  const auto xhat = [&](int64_t i, int64_t n) {
    return hn::Mul(hn::Sub(load(x + i, n), set(m.mean)), set(m.rstd));
  };
  Vec sum_g = zero(), sum_gx = zero();
  for_vectors(C, [&](int64_t i, int64_t n) {
    sum_g = hn::Add(sum_g, g(i, n));
    sum_gx = hn::MulAdd(g(i, n), xhat(i, n), sum_gx);  // g is 0 behind the tail
  });
  const Vec mean_g = set(sum(sum_g) / static_cast<float>(C));
  const Vec mean_gx = set(sum(sum_gx) / static_cast<float>(C));
  for_vectors(C, [&](int64_t i, int64_t n) {
    const Vec centred = hn::Sub(hn::Sub(g(i, n), mean_g), hn::Mul(xhat(i, n), mean_gx));
    const Vec value = hn::Mul(centred, set(m.rstd));
    store(add ? hn::Add(load(dx + i, n), value) : value, dx + i, n);
  });
}

// dweight += dy * xhat, dbias += dy.
inline void norm_dw(const float* dy, const float* x, int64_t C, Moments m, float* dweight,
                    float* dbias) {
  for_vectors(C, [&](int64_t i, int64_t n) {
    const Vec d = load(dy + i, n);
    const Vec xhat = hn::Mul(hn::Sub(load(x + i, n), set(m.mean)), set(m.rstd));
    store(hn::MulAdd(d, xhat, load(dweight + i, n)), dweight + i, n);
    store(hn::Add(load(dbias + i, n), d), dbias + i, n);
  });
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
