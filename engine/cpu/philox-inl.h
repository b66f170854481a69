// Philox (engine/rng.h) with one call in each lane. Included like simd-inl.h.
#if defined(SFT_PHILOX_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SFT_PHILOX_INL_H
#undef SFT_PHILOX_INL_H
#else
#define SFT_PHILOX_INL_H
#endif

#include <hwy/highway.h>

#include "engine/cpu/simd-inl.h"
#include "engine/rng.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

using WordLanes = hn::RebindToUnsigned<Lanes>;
using Words = hn::Vec<WordLanes>;

// The 64-bit product a b of each lane.
HWY_INLINE void multiply(Words a, uint32_t b, Words& high, Words& low) {
  const WordLanes d;
#if HWY_TARGET == HWY_SCALAR
  const uint64_t product = uint64_t{hn::GetLane(a)} * b;
  high = hn::Set(d, static_cast<uint32_t>(product >> 32));
  low = hn::Set(d, static_cast<uint32_t>(product));
#else
  const hn::Repartition<uint64_t, WordLanes> wide;
  const Words factor = hn::Set(d, b);
  const auto even = hn::MulEven(a, factor);
  const auto odd = hn::MulEven(hn::BitCast(d, hn::ShiftRight<32>(hn::BitCast(wide, a))), factor);
  low = hn::OddEven(hn::BitCast(d, hn::ShiftLeft<32>(odd)), hn::BitCast(d, even));
  high = hn::OddEven(hn::BitCast(d, odd), hn::BitCast(d, hn::ShiftRight<32>(even)));
#endif
}

// The four words of the call in each lane.
HWY_INLINE void philox_lanes(const Rng& rng, Words call, uint32_t utterance, uint32_t site,
                             Words (&x)[4]) {
  const WordLanes d;
  x[0] = call, x[1] = hn::Set(d, utterance);
  x[2] = hn::Set(d, rng.update), x[3] = hn::Set(d, site);
  auto k0 = static_cast<uint32_t>(rng.seed), k1 = static_cast<uint32_t>(rng.seed >> 32);
  for (int round = 0; round < 7; ++round) {
    Words high0, low0, high2, low2;
    multiply(x[0], 0xD2511F53u, high0, low0);
    multiply(x[2], 0xCD9E8D57u, high2, low2);
    x[0] = hn::Xor(hn::Xor(high2, x[1]), hn::Set(d, k0));
    x[2] = hn::Xor(hn::Xor(high0, x[3]), hn::Set(d, k1));
    x[1] = low2, x[3] = low0;
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
