// What cosines of rows are made of, and their gradient. Included like simd-inl.h.
#if defined(SFT_COSINE_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SFT_COSINE_INL_H
#undef SFT_COSINE_INL_H
#else
#define SFT_COSINE_INL_H
#endif

#include <algorithm>
#include <cmath>

#include "engine/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

constexpr float kLeastNorm = 1e-8f;

HWY_INLINE float row_product(const float* a, const float* b, int64_t D) {
  Vec total = zero();
  for_vectors(
      D, [&](int64_t i, int64_t n) { total = hn::MulAdd(load(a + i, n), load(b + i, n), total); });
  return sum(total);
}

// 1 / max(|x|, 1e-8)
HWY_INLINE float inverse_norm_of(const float* x, int64_t D) {
  return 1 / std::max(std::sqrt(row_product(x, x, D)), kLeastNorm);
}

// Back through x / |x|: dx (+)= g - x (x g) / |x|^2, where g is already the gradient by x / |x|
// over |x|; all of g where the norm is clamped. scale is 1 / |x|, or its bound.
HWY_INLINE void project_row_off(const float* g, const float* x, float scale, int64_t D, float* dx,
                                bool add) {
  const bool clamped = scale >= 1 / kLeastNorm;
  const Vec along = set(clamped ? 0 : scale * scale * row_product(x, g, D));
  for_vectors(D, [&](int64_t i, int64_t n) {
    const Vec value = hn::NegMulAdd(load(x + i, n), along, load(g + i, n));
    store(add ? hn::Add(load(dx + i, n), value) : value, dx + i, n);
  });
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
