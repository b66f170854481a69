// The tile of registers under convolutions and linear layers: c[r][n] += sum over k of a[r][k]
// b[k][n], for a few rows r and a few vectors n. Rows of `a` may overlap, so a convolution reads
// its input as it lies. Included by each kernel file once per target.
//
// Reached: 180 to 200 GF/s on one core of an Intel Emerald Rapids (FMA peak 168 to 200, its clock
// varies), depth 1024 to 6144, b read from L2.
#if defined(SFT_CONV_TILE_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SFT_CONV_TILE_INL_H
#undef SFT_CONV_TILE_INL_H
#else
#define SFT_CONV_TILE_INL_H
#endif

#include "engine/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

// All sums stay in registers beside one row of b and one broadcast: 24 of 32, or 12 of 16.
template <int kVectors>
constexpr int kConvTileRows = (HWY_MAX_BYTES >= 64 ? 24 : 12) / kVectors;

// Step (tap, channel) reads a + tap * a_tap + channel * a_channel, and the next row of b.
struct ConvTileSteps {
  int64_t taps, channels;
  int64_t a_tap, a_channel, b_step;
};

// c [kRows, kVectors * lanes], rows c_step apart; first: c is written, not added to. Rows of a are
// kRowStep apart, a constant so that they need one register. kAhead: steps by which b is fetched
// into the L1 cache before its turn, where it comes from farther away; then each step fetches
// kLater numbers of what a later tile reads, and one of a row that is copied later, into the L2
// cache as well.
template <int kVectors, int kRowStep, int kRows = kConvTileRows<kVectors>, int kAhead = 0,
          int kLater = 0>
HWY_INLINE void conv_tile(const float* HWY_RESTRICT a, const float* HWY_RESTRICT b,
                          const ConvTileSteps& steps, float* HWY_RESTRICT c, int64_t c_step,
                          bool first, const float* later = nullptr, const float* row = nullptr) {
  const Lanes d;
  const int64_t width = lanes();
  Vec sums[kRows][kVectors];
#pragma GCC unroll 32
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[r][v] = zero();
  for (int64_t tap = 0; tap < steps.taps; ++tap) {
    const float* left = a + tap * steps.a_tap;
    for (int64_t channel = 0; channel < steps.channels; ++channel) {
      Vec right[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        right[v] = hn::LoadU(d, b + v * width);
        if (kAhead) __builtin_prefetch(b + kAhead * kVectors * width + v * width);
      }
      if (kLater) {
        __builtin_prefetch(later, 0, 2), later += kLater;
        __builtin_prefetch(row++, 0, 2);
      }
#pragma GCC unroll 32
      for (int r = 0; r < kRows; ++r) {
        const Vec value = set(left[r * kRowStep]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) sums[r][v] = hn::MulAdd(value, right[v], sums[r][v]);
      }
      left += steps.a_channel;
      b += steps.b_step;
    }
  }
#pragma GCC unroll 32
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      float* to = c + r * c_step + v * width;
      hn::StoreU(first ? sums[r][v] : hn::Add(hn::LoadU(d, to), sums[r][v]), d, to);
    }
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
