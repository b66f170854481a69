// Products of small packed blocks, held in registers, and the packing they need. Included like
// simd-inl.h. For ops whose matrices are many and small (attention); whole-batch products are
// engine/cpu/gemm.h's.
//
// A block has kTileColumns columns (two vectors); a tile is kTileRows of its rows.
#if defined(SFT_TILE_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SFT_TILE_INL_H
#undef SFT_TILE_INL_H
#else
#define SFT_TILE_INL_H
#endif

#include <hwy/highway.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "engine/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

constexpr int64_t kLanes = HWY_LANES(float);
constexpr int64_t kTileColumns = 2 * kLanes;
// Accumulators are kTileRows x 2 of 32 (AVX-512) or 16 registers.
constexpr int64_t kTileRows = HWY_TARGET == HWY_AVX3 ? 8 : std::min<int64_t>(4, kTileColumns);

// What a tile multiplies: words of one f32, or of two int16 that lie beside each other along the
// sum.
struct Single {
  using Word = float;
  using Words = Vec;
  using Sum = Vec;
  static constexpr int64_t kNumbers = 1;  // of a word

  static HWY_INLINE Sum none() { return zero(); }
  static HWY_INLINE Words all(float word) { return set(word); }
  static HWY_INLINE Words load(const float* words) { return hn::LoadU(Lanes(), words); }
  static HWY_INLINE void add(Sum& sum, Words a, Words b) { sum = hn::MulAdd(a, b, sum); }
  static HWY_INLINE Vec number(Sum sum) { return sum; }
};

#if HWY_TARGET == HWY_AVX3  // and VNNI, which whoever asks for it has checked
struct Pairs {
  using Word = int32_t;
  using WordLanes = hn::RebindToSigned<Lanes>;
  using Words = hn::Vec<WordLanes>;
  using Sum = Words;  // exact while no sum of products reaches 2^31
  static constexpr int64_t kNumbers = 2;

  static HWY_INLINE Sum none() { return hn::Zero(WordLanes()); }
  static HWY_INLINE Words all(int32_t word) { return hn::Set(WordLanes(), word); }
  static HWY_INLINE Words load(const int32_t* words) { return hn::LoadU(WordLanes(), words); }
  static HWY_INLINE void add(Sum& sum, Words a, Words b) {
    asm("vpdpwssd %2, %1, %0" : "+v"(sum.raw) : "v"(a.raw), "v"(b.raw));
  }
  static HWY_INLINE Vec number(Sum sum) { return hn::ConvertTo(Lanes(), sum); }
};
#endif

// f(i, v, sum over k < depth of a[i * row + k * column] times vector v of b + k * b_step),
// i < kTileRows, v < kVectors; depth in words.
template <class Kind, int64_t row, int kVectors, class F>
HWY_INLINE void tile(const typename Kind::Word* HWY_RESTRICT a, int64_t column,
                     const typename Kind::Word* HWY_RESTRICT b, int64_t b_step, int64_t depth,
                     F&& f) {
  typename Kind::Sum sums[kTileRows][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sums[i][v] = Kind::none();
  for (int64_t k = 0; k < depth; ++k, a += column, b += b_step) {
    typename Kind::Words right[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) right[v] = Kind::load(b + v * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
      const auto left = Kind::all(a[i * row]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) Kind::add(sums[i][v], left, right[v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) f(i, v, Kind::number(sums[i][v]));
}

// a [rows x depth], element (r, k) at a + r * row + k * column, times b [depth][width], rows b_step
// apart: f(r, c, sums) gets those of row r and of the vector of columns from c on.
// rows % kTileRows == 0, width % kLanes == 0.
template <class Kind, int64_t row, int64_t column, class F>
HWY_INLINE void product(const typename Kind::Word* a, const typename Kind::Word* b, int64_t b_step,
                        int64_t rows, int64_t depth, int64_t width, F&& f) {
  int64_t c = 0;
  for (; c + 2 * kLanes <= width; c += 2 * kLanes)
    for (int64_t r = 0; r < rows; r += kTileRows)
      tile<Kind, row, 2>(a + r * row, column, b + c, b_step, depth,
                         [&](int i, int v, Vec sums) { f(r + i, c + v * kLanes, sums); });
  for (; c < width; c += kLanes)
    for (int64_t r = 0; r < rows; r += kTileRows)
      tile<Kind, row, 1>(a + r * row, column, b + c, b_step, depth,
                         [&](int i, int, Vec sums) { f(r + i, c, sums); });
}

// Four columns of up to Width rows to rows of Width words, times factor if they are floats; rows
// that are missing up to Width are zeros. rows x width of src (rows stride apart) -> dst
// [width][Width]. width % 4 == 0; temporary: width * Width words.
template <int64_t Width, class Word>
HWY_INLINE void transpose_in(const Word* src, int64_t stride, int64_t rows, int64_t width,
                             float factor, Word* temporary, Word* dst) {
  constexpr Word zeros[4] = {};
  for (int64_t r = 0; r < Width; ++r)
    for (int64_t k = 0; k < width; k += 4)
      std::memcpy(temporary + k * Width + r * 4, r < rows ? src + r * stride + k : zeros,
                  sizeof(zeros));
  const hn::CappedTag<Word, Width> d;
  const auto step = static_cast<int64_t>(hn::Lanes(d));
  const auto scaled = [&](auto x) {
    if constexpr (std::is_same_v<Word, float>) return hn::Mul(x, hn::Set(d, factor));
    return x;
  };
  for (int64_t k = 0; k < width; k += 4)
    for (int64_t r = 0; r < Width; r += step) {
      hn::Vec<decltype(d)> x0, x1, x2, x3;
      hn::LoadInterleaved4(d, temporary + k * Width + r * 4, x0, x1, x2, x3);
      Word* to = dst + k * Width + r;
      hn::StoreU(scaled(x0), d, to);
      hn::StoreU(scaled(x1), d, to + Width);
      hn::StoreU(scaled(x2), d, to + 2 * Width);
      hn::StoreU(scaled(x3), d, to + 3 * Width);
    }
}

// Fetches a row that lies kSoon rows on: rows of a head are too short and too far apart for the
// processor to see them coming.
constexpr int64_t kSoon = 6;
HWY_INLINE void fetch_soon(const float* row, int64_t stride, int64_t width) {
  for (int64_t k = 0; k < width; k += 16) __builtin_prefetch(row + kSoon * stride + k);
}

// rows x width of src (rows stride apart), times factor -> [count][step]; what is missing is zero.
// step % kLanes == 0.
inline HWY_NOINLINE void copy_rows(const float* src, int64_t stride, int64_t rows, int64_t width,
                                   float factor, int64_t count, int64_t step, float* dst) {
  for (int64_t r = 0; r < count; ++r, src += stride, dst += step) {
    fetch_soon(src, stride, width);
    for (int64_t k = 0; k < step; k += kLanes) {
      const bool there = r < rows && k < width;
      const Vec x = there ? load(src + k, width - k) : zero();
      hn::StoreU(hn::Mul(x, set(factor)), Lanes(), dst + k);
    }
  }
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
