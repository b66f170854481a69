// Vectors of whatever width the target has (Highway), with tails. Included by each kernel file once
// per target, after hwy/foreach_target.h.
#if defined(SFT_SIMD_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SFT_SIMD_INL_H
#undef SFT_SIMD_INL_H
#else
#define SFT_SIMD_INL_H
#endif

#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;
using Lanes = hn::ScalableTag<float>;
using Vec = hn::Vec<Lanes>;

// The first n numbers at p, zeros behind them; n >= Lanes: a full load.
HWY_INLINE Vec load(const float* p, int64_t n) {
  const Lanes d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  return n >= lanes ? hn::LoadU(d, p) : hn::MaskedLoad(hn::FirstN(d, n), d, p);
}

HWY_INLINE void store(Vec v, float* p, int64_t n) {
  const Lanes d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  if (n >= lanes)
    hn::StoreU(v, d, p);
  else
    hn::BlendedStore(v, hn::FirstN(d, n), d, p);
}

// Past the caches, where a whole vector lies as they need it.
HWY_INLINE void stream(Vec v, float* p, int64_t n) {
  if (n >= static_cast<int64_t>(hn::Lanes(Lanes())) &&
      reinterpret_cast<uintptr_t>(p) % sizeof(Vec) == 0)
    hn::Stream(v, Lanes(), p);
  else
    store(v, p, n);
}

HWY_INLINE Vec set(float value) { return hn::Set(Lanes(), value); }
HWY_INLINE Vec zero() { return hn::Zero(Lanes()); }
HWY_INLINE float sum(Vec v) { return hn::GetLane(hn::SumOfLanes(Lanes(), v)); }
HWY_INLINE int64_t lanes() { return static_cast<int64_t>(hn::Lanes(Lanes())); }

// f(i, n): the vector at [i, i + n) of [0, count); n is lanes() but for the last one.
template <class F>
HWY_INLINE void for_vectors(int64_t count, F&& f) {
  const int64_t step = lanes();
  int64_t i = 0;
  for (; i + step <= count; i += step) f(i, step);
  if (i < count) f(i, count - i);
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
