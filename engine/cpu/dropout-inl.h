// Dropout's random bits along a row, for every target. Included like simd-inl.h.
#if defined(SFT_DROPOUT_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SFT_DROPOUT_INL_H
#undef SFT_DROPOUT_INL_H
#else
#define SFT_DROPOUT_INL_H
#endif

#include <hwy/highway.h>

#include "engine/cpu/dropout.h"
#include "engine/cpu/philox-inl.h"
#include "engine/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

// Columns whose bits are drawn at once.
constexpr int64_t kBitsBlock = 512;

// The 16-bit numbers of columns [0, count), count <= kBitsBlock, whose first call is `call`.
HWY_INLINE void dropout_bits(const cpu::DropoutRow& row, uint32_t call, int64_t count,
                             uint16_t* bits) {
  const WordLanes d;
  const int64_t step = lanes();  // calls at once
  auto* words = reinterpret_cast<uint32_t*>(bits);
  for (int64_t i = 0; i * 8 < count; i += step) {
    Words x[4];
    philox_lanes(row.rng, hn::Iota(d, call + static_cast<uint32_t>(i)), row.utterance, row.site, x);
    hn::StoreInterleaved4(x[0], x[1], x[2], x[3], d, words + 4 * i);
  }
}

// f(i, n, factor) for the vectors of `count` columns, as for_vectors; factor is 0 where the row
// drops and its scale elsewhere.
template <class F>
HWY_INLINE void for_dropped(const cpu::DropoutRow& row, int64_t count, F&& f) {
  if (row.threshold == 0) {
    for_vectors(count, [&](int64_t i, int64_t n) { f(i, n, set(row.scale)); });
    return;
  }
  const hn::RebindToSigned<Lanes> di;
  const hn::Rebind<uint16_t, Lanes> du16;
  const auto last_dropped = hn::Set(di, static_cast<int32_t>(row.threshold) - 1);
  HWY_ALIGN uint16_t bits[kBitsBlock];
  for (int64_t begin = 0; begin < count; begin += kBitsBlock) {
    const int64_t width = std::min(kBitsBlock, count - begin);
    dropout_bits(row, row.call + static_cast<uint32_t>(begin / 8), width, bits);
    for_vectors(width, [&](int64_t i, int64_t n) {
      const auto drawn = hn::PromoteTo(di, hn::Load(du16, bits + i));
      const auto kept = hn::RebindMask(Lanes(), hn::Gt(drawn, last_dropped));
      f(begin + i, n, hn::IfThenElseZero(kept, set(row.scale)));
    });
  }
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
