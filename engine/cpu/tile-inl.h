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
#include <cstring>

#include "engine/cpu/simd-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

constexpr int64_t kLanes = HWY_LANES(float);
constexpr int64_t kTileColumns = 2 * kLanes;
// Accumulators are kTileRows x 2 of 32 (AVX-512) or 16 registers.
constexpr int64_t kTileRows = HWY_TARGET == HWY_AVX3 ? 8 : 4;

// c[i][j] (+)= sum_k a[i * row + k * column] b[k][j], i < kTileRows, j < Vectors * kLanes,
// k < depth; b and c have rows of ldb and ldc numbers.
template <int64_t row, int64_t column, int Vectors>
HWY_INLINE void tile(const float* HWY_RESTRICT a, const float* HWY_RESTRICT b, int64_t ldb,
                     int64_t depth, float* HWY_RESTRICT c, int64_t ldc, bool add) {
  const Lanes d;
  Vec sums[kTileRows][Vectors];
#pragma GCC unroll 8
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v)
      sums[i][v] = add ? hn::LoadU(d, c + i * ldc + v * kLanes) : hn::Zero(d);
  for (int64_t k = 0; k < depth; ++k, a += column, b += ldb) {
    Vec right[Vectors];
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) right[v] = hn::LoadU(d, b + v * kLanes);
#pragma GCC unroll 8
    for (int i = 0; i < kTileRows; ++i) {
      const Vec left = hn::Set(d, a[i * row]);
#pragma GCC unroll 2
      for (int v = 0; v < Vectors; ++v) sums[i][v] = hn::MulAdd(left, right[v], sums[i][v]);
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kTileRows; ++i)
#pragma GCC unroll 2
    for (int v = 0; v < Vectors; ++v) hn::StoreU(sums[i][v], d, c + i * ldc + v * kLanes);
}

// panels [rows / kTileRows][depth][kTileRows], panel_stride apart, times b [depth][kTileColumns]
// -> c [rows][kTileColumns], written or added to. rows % kTileRows == 0.
inline HWY_NOINLINE void multiply_panels(const float* panels, int64_t panel_stride, const float* b,
                                         int64_t rows, int64_t depth, float* c, bool add) {
  for (int64_t r = 0; r < rows; r += kTileRows, panels += panel_stride)
    tile<1, kTileRows, 2>(panels, b, kTileColumns, depth, c + r * kTileColumns, kTileColumns, add);
}

// c [rows][width] += a [rows][kTileColumns] b [kTileColumns][width]; rows % kTileRows == 0,
// width % kLanes == 0.
inline HWY_NOINLINE void add_product(const float* a, const float* b, int64_t rows, int64_t width,
                                     float* c) {
  for (int64_t r = 0; r < rows; r += kTileRows, a += kTileRows * kTileColumns) {
    int64_t j = 0;
    for (; j + 2 * kLanes <= width; j += 2 * kLanes)
      tile<kTileColumns, 1, 2>(a, b + j, width, kTileColumns, c + r * width + j, width, true);
    for (; j < width; j += kLanes)
      tile<kTileColumns, 1, 1>(a, b + j, width, kTileColumns, c + r * width + j, width, true);
  }
}

HWY_INLINE void copy_four(const float* src, float* dst) {  // null: zeros
  constexpr float zeros[4] = {};
  std::memcpy(dst, src ? src : zeros, sizeof(zeros));
}

// Four columns of up to Width rows to and from rows of Width numbers: what the transposing
// functions below go through.
template <int64_t Width>
using Interleave = hn::CappedTag<float, Width>;

// rows x width of src (rows stride apart) -> dst [width][Width] transposed, times factor; rows that
// are missing up to Width are zeros. width % 4 == 0; temporary: width * Width numbers.
template <int64_t Width>
HWY_INLINE void transpose_in(const float* src, int64_t stride, int64_t rows, int64_t width,
                             float factor, float* temporary, float* dst) {
  for (int64_t r = 0; r < Width; ++r)
    for (int64_t k = 0; k < width; k += 4)
      copy_four(r < rows ? src + r * stride + k : nullptr, temporary + k * Width + r * 4);
  const Interleave<Width> d;
  const auto step = static_cast<int64_t>(hn::Lanes(d));
  const auto scale = hn::Set(d, factor);
  for (int64_t k = 0; k < width; k += 4)
    for (int64_t r = 0; r < Width; r += step) {
      hn::Vec<Interleave<Width>> x0, x1, x2, x3;
      hn::LoadInterleaved4(d, temporary + k * Width + r * 4, x0, x1, x2, x3);
      float* to = dst + k * Width + r;
      hn::StoreU(hn::Mul(x0, scale), d, to);
      hn::StoreU(hn::Mul(x1, scale), d, to + Width);
      hn::StoreU(hn::Mul(x2, scale), d, to + 2 * Width);
      hn::StoreU(hn::Mul(x3, scale), d, to + 3 * Width);
    }
}

// src [width][kTileColumns], column r times factors[r] -> row r of dst (rows stride apart), written
// or added to.
HWY_INLINE void transpose_out(const float* src, int64_t rows, int64_t width, const float* factors,
                              float* temporary, float* dst, int64_t stride, bool add) {
  const Lanes d;
  for (int64_t k = 0; k < width; k += 4)
    for (int64_t r = 0; r < kTileColumns; r += kLanes) {
      const Vec scale = hn::LoadU(d, factors + r);
      const float* from = src + k * kTileColumns + r;
      hn::StoreInterleaved4(hn::Mul(hn::LoadU(d, from), scale),
                            hn::Mul(hn::LoadU(d, from + kTileColumns), scale),
                            hn::Mul(hn::LoadU(d, from + 2 * kTileColumns), scale),
                            hn::Mul(hn::LoadU(d, from + 3 * kTileColumns), scale), d,
                            temporary + k * kTileColumns + r * 4);
    }
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t k = 0; k < width; k += 4) {
      const float* HWY_RESTRICT from = temporary + k * kTileColumns + r * 4;
      float* HWY_RESTRICT to = dst + r * stride + k;
      if (add)
        for (int i = 0; i < 4; ++i) to[i] += from[i];
      else
        copy_four(from, to);
    }
}

// Rows as panels: dst [padded / kTileRows][width][kTileRows]; what is missing is zero.
// width % 4 == 0, padded >= rows and a multiple of kTileRows.
inline HWY_NOINLINE void pack_rows(const float* src, int64_t stride, int64_t rows, int64_t padded,
                                   int64_t width, float* temporary, float* dst) {
  for (int64_t r = 0; r < padded; r += kTileRows)
    transpose_in<kTileRows>(src + r * stride, stride, rows - r, width, 1, temporary,
                            dst + r * width);
}

// Columns as panels: dst [ceil(width / kTileRows)][padded][kTileRows]; what is missing is zero.
// width % 4 == 0, padded >= rows.
inline HWY_NOINLINE void pack_columns(const float* src, int64_t stride, int64_t rows,
                                      int64_t padded, int64_t width, float* dst) {
  for (int64_t k = 0; k < width; k += kTileRows)
    for (int64_t r = 0; r < padded; ++r)
      for (int64_t j = 0; j < kTileRows; j += 4, dst += 4) {
        const bool there = r < rows && k + j < width;
        copy_four(there ? src + r * stride + k + j : nullptr, dst);
      }
}

// rows x width of src -> dst [count][padded], times factor; what is missing is zero.
inline HWY_NOINLINE void copy_rows(const float* src, int64_t stride, int64_t rows, int64_t width,
                                   int64_t count, int64_t padded, float factor, float* dst) {
  for (int64_t r = 0; r < count; ++r)
    for (int64_t k = 0; k < padded; k += kLanes) {
      const bool there = r < rows && k < width;
      const Vec x = there ? load(src + r * stride + k, width - k) : zero();
      hn::StoreU(hn::Mul(x, set(factor)), Lanes(), dst + r * padded + k);
    }
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
