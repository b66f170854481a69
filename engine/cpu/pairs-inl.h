// Numbers as int16 with a scale for a few of them, two to a word: what tile-inl.h multiplies with
// Pairs (math mode fast16). Included like simd-inl.h; AVX-512 only.
//
// q = x / scale is rounded half to even. A number that is not finite makes its scale not finite.
#if defined(SFT_PAIRS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SFT_PAIRS_INL_H
#undef SFT_PAIRS_INL_H
#else
#define SFT_PAIRS_INL_H
#endif

#include "engine/cpu/tile-inl.h"
#include "engine/cpu/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

constexpr float kLargest = 32760;

// The largest integer for sums of `depth` products with others up to `other`: they stay below 2^31.
constexpr float integer_limit(int64_t depth, float other) {
  return std::min(kLargest, 2147000000.0f / (static_cast<float>(depth) * other));
}
inline float square_limit(int64_t depth) {  // of both sides alike
  return std::min(kLargest, std::sqrt(2147000000.0f / static_cast<float>(depth)) - 1);
}

#if HWY_TARGET == HWY_AVX3

// The largest magnitude of some numbers, lane by lane, as bits: NaN is more than infinity.
class Spread {
 public:
  HWY_INLINE Spread() : most_(hn::Zero(Pairs::WordLanes())) {}
  HWY_INLINE void add(Vec x) {
    most_ = hn::Max(most_, hn::BitCast(Pairs::WordLanes(), hn::Abs(x)));
  }
  // What an integer up to `limit` stands for; not finite if a number is not.
  HWY_INLINE Vec scale(float limit) const { return scale_of(most_, limit); }
  HWY_INLINE Vec scale_of_all(float limit) const {
    return scale_of(hn::MaxOfLanes(Pairs::WordLanes(), most_), limit);
  }

 private:
  static HWY_INLINE Vec scale_of(Pairs::Words most, float limit) {
    const auto some = hn::Gt(most, hn::BitCast(Pairs::WordLanes(), set(1e-30f)));
    const Vec scale = hn::Mul(hn::BitCast(Lanes(), most), set(1 / limit));
    return hn::IfThenElse(hn::RebindMask(Lanes(), some), scale, set(1));
  }

  Pairs::Words most_;
};

// Rounded half to even; anything for what is out of range.
HWY_INLINE Pairs::Words integers(Vec x) { return Pairs::Words{_mm512_cvtps_epi32(x.raw)}; }

HWY_INLINE Pairs::Words paired(Pairs::Words low, Pairs::Words high) {
  return hn::Or(hn::And(low, hn::Set(Pairs::WordLanes(), 0xffff)), hn::ShiftLeft<16>(high));
}

HWY_INLINE void store_integers(Pairs::Words x, int32_t* words, int64_t lane) {
  const hn::Rebind<int16_t, Lanes> d;
  hn::StoreU(hn::DemoteTo(d, x), d, reinterpret_cast<int16_t*>(words) + lane);
}

// rows x width of src (rows stride apart), times factor -> words [count][step], pairs along rows,
// and a scale for each row; what is missing is zero. 2 step % kLanes == 0.
inline HWY_NOINLINE void pack_along(const float* src, int64_t stride, int64_t rows, int64_t width,
                                    float factor, float limit, int64_t count, int64_t step,
                                    int32_t* words, float* scales) {
  for (int64_t r = 0; r < count; ++r, src += stride, words += step) {
    const int64_t there = r < rows ? width : 0;
    fetch_soon(src, stride, width);
    Spread spread;
    for_vectors(there, [&](int64_t k, int64_t n) { spread.add(load(src + k, n)); });
    const Vec scale = spread.scale_of_all(limit), inverse = reciprocal(scale);
    scales[r] = hn::GetLane(scale) * factor;
    for (int64_t k = 0; k < 2 * step; k += kLanes) {
      const Vec x = k < there ? load(src + k, there - k) : zero();
      store_integers(integers(hn::Mul(x, inverse)), words, k);
    }
  }
}

// The same -> words [count / 2][step], pairs of rows, and scales [count / block][step] for `block`
// rows of a column. step % kLanes == 0, count % block == 0, block % 2 == 0.
inline HWY_NOINLINE void pack_across(const float* src, int64_t stride, int64_t rows, int64_t width,
                                     float factor, float limit, int64_t count, int64_t step,
                                     int64_t block, int32_t* words, float* scales) {
  const auto number = [&](int64_t r, int64_t c) {
    return r < rows && c < width ? load(src + r * stride + c, width - c) : zero();
  };
  for (int64_t first = 0; first < count; first += block, scales += step)
    for (int64_t c = 0; c < step; c += kLanes) {
      Spread spread;
      for (int64_t r = first; r < first + block; ++r) spread.add(number(r, c));
      const Vec scale = spread.scale(limit), inverse = reciprocal(scale);
      hn::StoreU(hn::Mul(scale, set(factor)), Lanes(), scales + c);
      for (int64_t r = first; r < first + block; r += 2)
        hn::StoreU(paired(integers(hn::Mul(number(r, c), inverse)),
                          integers(hn::Mul(number(r + 1, c), inverse))),
                   Pairs::WordLanes(), words + r / 2 * step + c);
    }
}

#endif

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
