// Softmax of a row and its gradient. Included like simd-inl.h.
#if defined(SFT_SOFTMAX_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SFT_SOFTMAX_INL_H
#undef SFT_SOFTMAX_INL_H
#else
#define SFT_SOFTMAX_INL_H
#endif

#include <limits>

#include "engine/cpu/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

// y = softmax(x / temperature); may be x.
HWY_INLINE void softmax_row(const float* x, int64_t V, float temperature, float* y) {
  Vec most = set(-std::numeric_limits<float>::infinity());
  for_vectors(V, [&](int64_t i, int64_t n) {
    most = hn::Max(most, hn::IfThenElse(hn::FirstN(Lanes(), n), load(x + i, n), most));
  });
  const Vec top = set(hn::GetLane(hn::MaxOfLanes(Lanes(), most))), scale = set(1 / temperature);
  Vec total = zero();
  for_vectors(V, [&](int64_t i, int64_t n) {
    const Vec e = exp(hn::Mul(hn::Sub(load(x + i, n), top), scale));
    total = hn::Add(total, hn::IfThenElseZero(hn::FirstN(Lanes(), n), e));
    store(e, y + i, n);
  });
  const Vec share = set(1 / sum(total));
  for_vectors(V, [&](int64_t i, int64_t n) { store(hn::Mul(load(y + i, n), share), y + i, n); });
}

// dx (+)= factor p (dp - sum p dp)
HWY_INLINE void softmax_gradient_row(const float* p, const float* dp, int64_t V, float factor,
                                     float* dx, bool add) {
  Vec product = zero();
  for_vectors(V, [&](int64_t i, int64_t n) {
    product = hn::MulAdd(load(p + i, n), load(dp + i, n), product);
  });
  const Vec mean = set(sum(product));
  for_vectors(V, [&](int64_t i, int64_t n) {
    const Vec d = hn::Mul(hn::Mul(set(factor), load(p + i, n)), hn::Sub(load(dp + i, n), mean));
    store(add ? hn::Add(load(dx + i, n), d) : d, dx + i, n);
  });
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
