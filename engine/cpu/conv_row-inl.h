// What follows the sums of one row of a convolution, and its way back: shift, norm over channels,
// GELU. Included by each kernel file once per target.
#if defined(SFT_CONV_ROW_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SFT_CONV_ROW_INL_H
#undef SFT_CONV_ROW_INL_H
#else
#define SFT_CONV_ROW_INL_H
#endif

#include "engine/cpu/conv_row.h"
#include "engine/cpu/norm-inl.h"
#include "engine/cpu/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

HWY_INLINE Vec shifted(const float* sums, const cpu::ConvRow& row, int64_t i, int64_t n) {
  const Vec shift = row.shift ? load(row.shift + i, n) : zero();
  return row.scale ? hn::MulAdd(load(sums + i, n), load(row.scale + i, n), shift)
                   : hn::Add(load(sums + i, n), shift);
}

// What GELU is applied to.
HWY_INLINE Vec normed(const float* pre, const cpu::ConvRow& row, Moments m, int64_t i, int64_t n) {
  const Vec xhat = hn::Mul(hn::Sub(load(pre + i, n), set(m.mean)), set(m.rstd));
  return hn::MulAdd(xhat, load(row.norm_weight + i, n), load(row.norm_bias + i, n));
}

// sums [C] -> y [C]; pre [C] = what the norm over channels gets, may be sums itself. Without a norm
// pre may be null. kOnce: y is not read soon. Returns the moments of the norm.
template <bool kOnce = false>
inline Moments finish_row(const float* sums, const cpu::ConvRow& row, int64_t C, float* pre,
                          float* y) {
  const auto put = [&](Vec v, int64_t i, int64_t n) {
    kOnce ? stream(v, y + i, n) : store(v, y + i, n);
  };
  if (!row.norm_weight) {
    for_vectors(C, [&](int64_t i, int64_t n) {
      const Vec v = shifted(sums, row, i, n);
      if (pre) store(v, pre + i, n);
      put(gelu(v), i, n);
    });
    return {};
  }
  for_vectors(C, [&](int64_t i, int64_t n) { store(shifted(sums, row, i, n), pre + i, n); });
  const Moments m = moments(pre, C, row.eps);
  for_vectors(C, [&](int64_t i, int64_t n) { put(gelu(normed(pre, row, m, i, n)), i, n); });
  return m;
}

// dy [C] -> dpre [C]; dnorm_weight, dnorm_bias [C] are added to.
inline void unfinish_row(const float* dy, const float* pre, const cpu::ConvRow& row, Moments m,
                         int64_t C, float* dpre, float* dnorm_weight, float* dnorm_bias) {
  for_vectors(C, [&](int64_t i, int64_t n) {
    const Vec v = row.norm_weight ? normed(pre, row, m, i, n) : load(pre + i, n);
    store(hn::Mul(load(dy + i, n), gelu_slope(v)), dpre + i, n);
  });
  if (!row.norm_weight) return;
  norm_dw(dpre, pre, C, m, dnorm_weight, dnorm_bias);
  norm_dx(dpre, pre, row.norm_weight, C, m, dpre, false);
}

HWY_INLINE void add_row(const float* x, int64_t C, float* to) {
  for_vectors(
      C, [&](int64_t i, int64_t n) { store(hn::Add(load(to + i, n), load(x + i, n)), to + i, n); });
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
