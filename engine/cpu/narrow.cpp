#include "engine/cpu/narrow.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/cpu/isa.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sft::cpu::narrow {
namespace {

int64_t ceil_div(int64_t n, int64_t step) { return (n + step - 1) / step; }
int64_t whole(int64_t n, int64_t step) { return ceil_div(n, step) * step; }
int64_t aligned(int64_t bytes) { return whole(bytes, 64); }

constexpr int64_t kPairs = kBlock / 2, kLanes = 16;
constexpr int64_t kMostTiles = 10;  // of a chunk

int64_t most_rows(int64_t depth) {
  constexpr int64_t kNumbers = int64_t{1} << 19;
  return kTileRows *
         std::clamp<int64_t>(kNumbers / (kTileRows * std::max<int64_t>(depth, 1)), 1, kMostTiles);
}

}  // namespace

int64_t chunk(int64_t rows, int64_t depth) {
  const int64_t most = most_rows(depth);
  const int64_t chunks = whole(std::max<int64_t>(1, ceil_div(rows, most)), omp_get_max_threads());
  return std::clamp(whole(ceil_div(rows, chunks), kTileRows), kTileRows, most);
}

int64_t chunk_floats(int64_t depth) {
  return row_bytes(most_rows(depth), depth) / static_cast<int64_t>(sizeof(float));
}

int64_t row_bytes(int64_t rows, int64_t depth) {
  const int64_t n = whole(rows, kTileRows), blocks = ceil_div(depth, kBlock);
  return aligned(n * blocks * kBlock * 2) + aligned(n * blocks * 4) +
         n * static_cast<int64_t>(sizeof(Outliers));
}

Rows rows_in(void* memory, Math math, int64_t rows, int64_t depth) {
  const int64_t n = whole(rows, kTileRows), blocks = ceil_div(depth, kBlock);
  char* scales = static_cast<char*>(memory) + aligned(n * blocks * kBlock * 2);
  return {static_cast<int16_t*>(memory), reinterpret_cast<float*>(scales),
          reinterpret_cast<Outliers*>(scales + aligned(n * blocks * 4)), blocks, math};
}

int64_t panel_bytes(int64_t columns, int64_t depth) {
  return whole(columns, kTileColumns) * ceil_div(depth, kBlock) * (kBlock * 2 + 4);
}

Panels panels_in(void* memory, Math math, int64_t columns, int64_t depth) {
  const int64_t n = whole(columns, kTileColumns), blocks = ceil_div(depth, kBlock);
  char* scales = static_cast<char*>(memory) + n * blocks * kBlock * 2;
  return {static_cast<int16_t*>(memory), reinterpret_cast<float*>(scales), blocks, math};
}

#if defined(__x86_64__)

bool available(Math math) {
  if (isa() != "avx512" || !__builtin_cpu_supports("avx512bw")) return false;
  return math == Math::bf16 ? __builtin_cpu_supports("avx512bf16")
                            : __builtin_cpu_supports("avx512vnni");
}

#pragma GCC push_options
#pragma GCC diagnostic ignored "-Wuninitialized"        // of g++ 12's own headers
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // the same
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16")

namespace {

__mmask16 below(int64_t n) { return n >= kLanes ? 0xffff : n <= 0 ? 0 : (1u << n) - 1; }

struct Spread {  // of magnitudes
  __m512 most, sum;
};

void add(Spread& to, __m512 v) {
  const __m512 magnitude = _mm512_abs_ps(v);
  to.most = _mm512_max_ps(to.most, magnitude);
  to.sum = _mm512_add_ps(to.sum, magnitude);
}

// NaN where the sum is not finite.
__m512 scale_of(__m512 most, __m512 sum) {
  const __mmask16 some = _mm512_cmp_ps_mask(most, _mm512_set1_ps(1e-30f), _CMP_GT_OQ);
  const __m512 scale = _mm512_mask_div_ps(_mm512_set1_ps(1), some, most, _mm512_set1_ps(4095));
  return _mm512_add_ps(scale, _mm512_sub_ps(sum, sum));
}

__m256i rounded(Math math, __m512 v, __m512 inverse) {
  if (math == Math::bf16) return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(v));
  return _mm512_cvtsepi32_epi16(_mm512_cvtps_epi32(_mm512_mul_ps(v, inverse)));
}

// Whether the largest of n magnitudes is more than kStandsOut times the mean of the others.
bool stands_out(float most, float sum, int64_t n) {
  return std::isfinite(sum) && most > 1e-30f &&
         most * static_cast<float>(n - 1) > kStandsOut * (sum - most);
}

// Takes what stands out of a block out of it.
[[gnu::noinline]] void take_outliers(float* block, int64_t n, int64_t k, Outliers& of) {
  while (of.count < Outliers::kMost) {
    float sum = 0;
    int64_t largest = 0;
    for (int64_t i = 0; i < kBlock; ++i) {
      sum += std::abs(block[i]);
      if (std::abs(block[i]) > std::abs(block[largest])) largest = i;
    }
    const float most = std::abs(block[largest]);
    if (!stands_out(most, sum, n)) return;
    of.at[of.count] = static_cast<int32_t>(k + largest);
    of.value[of.count++] = block[largest];
    block[largest] = 0;
  }
}

// n <= kBlock numbers -> to [kBlock] and their scale; outliers null: none are taken.
float pack_block(Math math, const float* from, int64_t n, int64_t k, int16_t* to,
                 Outliers* outliers) {
  __m512 v[kBlock / kLanes];
  Spread spread{_mm512_setzero_ps(), _mm512_setzero_ps()};
#pragma GCC unroll 8
  for (int64_t i = 0; i < kBlock / kLanes; ++i)
    add(spread, v[i] = _mm512_maskz_loadu_ps(below(n - i * kLanes), from + i * kLanes));
  const float most = _mm512_reduce_max_ps(spread.most), sum = _mm512_reduce_add_ps(spread.sum);
  if (outliers && math == Math::fast16 && outliers->count < Outliers::kMost &&
      stands_out(most, sum, n)) {
    alignas(64) float block[kBlock];
    for (int64_t i = 0; i < kBlock / kLanes; ++i) _mm512_store_ps(block + i * kLanes, v[i]);
    take_outliers(block, n, k, *outliers);
    return pack_block(math, block, kBlock, k, to, nullptr);
  }
  const __m512 scale = scale_of(_mm512_set1_ps(most), _mm512_set1_ps(sum));
  const __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1), scale);
#pragma GCC unroll 8
  for (int64_t i = 0; i < kBlock / kLanes; ++i)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i * kLanes), rounded(math, v[i], inverse));
  return _mm512_cvtss_f32(scale);
}

// Blocks of n <= 16 vectors side by side, their numbers `step` apart: pairs [kPairs] of each, words
// pair_step apart; scales [n].
void pack_beside(Math math, const float* from, int64_t n, int64_t depth, int64_t step, int32_t* to,
                 int64_t pair_step, float* scales) {
  const __mmask16 there = below(n);
  const auto number = [&](int64_t k) {
    return _mm512_maskz_loadu_ps(k < depth ? there : 0, k < depth ? from + k * step : from);
  };
  Spread spread{_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t k = 0; k < depth; ++k) add(spread, number(k));
  const __m512 scale = scale_of(spread.most, spread.sum);
  const __m512 inverse = _mm512_div_ps(_mm512_set1_ps(1), scale);
  _mm512_mask_storeu_ps(scales, there, scale);
  for (int64_t pair = 0; pair < kPairs; ++pair) {
    const __m512i low = _mm512_cvtepu16_epi32(rounded(math, number(2 * pair), inverse));
    const __m512i high = _mm512_cvtepu16_epi32(rounded(math, number(2 * pair + 1), inverse));
    _mm512_storeu_si512(to + pair * pair_step, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
  }
}

// to [columns][rows] = from [rows][columns]; rows % 16 == 0. Words.
void transpose(const int32_t* from, int64_t from_step, int64_t rows, int64_t columns, int32_t* to,
               int64_t to_step) {
  const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i steps = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(static_cast<int>(from_step)));
  for (int64_t c = 0; c < columns; ++c)
    for (int64_t r = 0; r < rows; r += kLanes)
      _mm512_storeu_si512(to + c * to_step + r,
                          _mm512_i32gather_epi32(steps, from + r * from_step + c, 4));
}

int32_t* words(int16_t* numbers) { return reinterpret_cast<int32_t*>(numbers); }

// The panel's columns are rows of the matrix.
void pack_rows_as_panel(const Vectors& from, int64_t first, const Panels& to, int64_t block) {
  alignas(64) int32_t pairs[kTileColumns][kPairs];
  const int64_t at = first / kTileColumns * to.blocks + block, k = block * kBlock;
  const int64_t there = std::min(kTileColumns, from.count - first);
  for (int64_t c = 0; c < kTileColumns; ++c) {
    const float* row = from.data + (first + std::min(c, there - 1)) * from.vector + k;
    const int64_t n = c < there ? std::min(kBlock, from.depth - k) : 0;
    to.scales[at * kTileColumns + c] =
        pack_block(to.math, row, n, k, reinterpret_cast<int16_t*>(pairs[c]), nullptr);
  }
  transpose(pairs[0], kPairs, kTileColumns, kPairs, words(to.numbers) + at * kPairs * kTileColumns,
            kTileColumns);
}

void pack_columns_as_panel(const Vectors& from, int64_t first, const Panels& to, int64_t block) {
  const int64_t at = first / kTileColumns * to.blocks + block, k = block * kBlock;
  for (int64_t c = 0; c < kTileColumns; c += kLanes) {
    const int64_t n = std::clamp<int64_t>(from.count - first - c, 0, kLanes);
    float scales[kLanes] = {};
    pack_beside(to.math, from.data + k * from.number + first + (n ? c : 0), n,
                std::min(kBlock, from.depth - k), from.number,
                words(to.numbers) + at * kPairs * kTileColumns + c, kTileColumns, scales);
    std::copy_n(scales, kLanes, to.scales + at * kTileColumns + c);
  }
}

using Sums = __m512i[kTileRows][2];  // int32, or f32 of bf16

// sum += products of the pairs of a and b. Not by intrinsics: g++ 12 then keeps the sums of a tile
// in memory.
template <Math math>
void add_products(__m512i& sum, __m512i a, __m512i b) {
  if constexpr (math == Math::bf16)
    asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  else
    asm("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}

void clear(Sums& sums) {
#pragma GCC unroll 12
  for (auto& row : sums) row[0] = row[1] = _mm512_setzero_si512();
}

constexpr int64_t kLater = 4 * kTileColumns / kMostTiles + 1;  // bytes

// sums += a block of rows times a block of columns. Each pair fetches its share of the next panel
// into the L2 cache, so that the tiles of a chunk fetch all of it.
template <Math math>
[[gnu::always_inline]] inline void add_block(const int16_t* a, const int16_t* b, const char*& later,
                                             Sums& sums) {
  constexpr int64_t kAhead = 16 * 2 * kTileColumns;  // fetched into the L1 cache before its turn
  const int32_t* left = reinterpret_cast<const int32_t*>(a);
  for (int64_t pair = 0; pair < kPairs; ++pair, ++left, b += 2 * kTileColumns) {
    const __m512i right[2] = {_mm512_loadu_si512(b), _mm512_loadu_si512(b + kTileColumns)};
    _mm_prefetch(reinterpret_cast<const char*>(b + kAhead), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(b + kAhead + kTileColumns), _MM_HINT_T0);
    _mm_prefetch(later, _MM_HINT_T1);
    later += kLater;
#pragma GCC unroll 12
    for (int64_t r = 0; r < kTileRows; ++r) {
      const __m512i value = _mm512_set1_epi32(left[r * kPairs]);
      add_products<math>(sums[r][0], value, right[0]);
      add_products<math>(sums[r][1], value, right[1]);
    }
  }
}

void multiply_fixed(const int16_t* a, const float* a_scales, const int16_t* b,
                    const float* b_scales, int64_t blocks, const char* later, float* to,
                    int64_t step) {
  for (int64_t k = 0; k < blocks; ++k) {
    Sums sums;
    clear(sums);
    add_block<Math::fast16>(a + k * kTileRows * kBlock, b + k * kTileColumns * kBlock, later, sums);
    const float* column = b_scales + k * kTileColumns;
#pragma GCC unroll 12
    for (int64_t r = 0; r < kTileRows; ++r)
#pragma GCC unroll 2
      for (int v = 0; v < 2; ++v) {
        const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(a_scales[k * kTileRows + r]),
                                           _mm512_loadu_ps(column + v * kLanes));
        float* sum = to + r * step + v * kLanes;
        const __m512 before = k ? _mm512_loadu_ps(sum) : _mm512_setzero_ps();
        _mm512_storeu_ps(sum, _mm512_fmadd_ps(_mm512_cvtepi32_ps(sums[r][v]), scale, before));
      }
  }
}

void multiply_bf16(const int16_t* a, const int16_t* b, int64_t blocks, const char* later, float* to,
                   int64_t step) {
  Sums sums;
  clear(sums);
  for (int64_t k = 0; k < blocks; ++k)
    add_block<Math::bf16>(a + k * kTileRows * kBlock, b + k * kTileColumns * kBlock, later, sums);
#pragma GCC unroll 12
  for (int64_t r = 0; r < kTileRows; ++r)
#pragma GCC unroll 2
    for (int v = 0; v < 2; ++v) _mm512_storeu_si512(to + r * step + v * kLanes, sums[r][v]);
}

// sums [kTileColumns] += value times row k of a panel.
void add_outlier(float value, int64_t k, const int16_t* panel, const float* scales, float* sums) {
  const int64_t block = k / kBlock, pair = k / 2;
  for (int v = 0; v < 2; ++v) {
    const __m512i both = _mm512_loadu_si512(panel + (pair * kTileColumns + v * kLanes) * 2);
    const __m512i one = _mm512_srai_epi32(k % 2 ? both : _mm512_slli_epi32(both, 16), 16);
    const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(value),
                                       _mm512_loadu_ps(scales + block * kTileColumns + v * kLanes));
    float* to = sums + v * kLanes;
    _mm512_storeu_ps(to, _mm512_fmadd_ps(_mm512_cvtepi32_ps(one), scale, _mm512_loadu_ps(to)));
  }
}

}  // namespace

void pack_tile(const ProductRows& from, int64_t rows, int64_t first, const Rows& to) {
  for (int64_t r = 0; r < kTileRows; ++r) {
    Outliers& outliers = to.outliers[first + r];
    outliers.count = 0;
    const float* row = from.data + (first + r) * from.step;
    const int64_t there = first + r < rows ? std::clamp<int64_t>(from.end - row, 0, from.depth) : 0;
    for (int64_t block = 0; block < to.blocks; ++block) {
      const int64_t k = block * kBlock,
                    at = (first / kTileRows * to.blocks + block) * kTileRows + r;
      const int64_t n = std::clamp<int64_t>(there - k, 0, kBlock);
      to.scales[at] =
          pack_block(to.math, n ? row + k : from.data, n, k, to.numbers + at * kBlock, &outliers);
    }
  }
}

void pack_tile(const Vectors& from, int64_t first, const Rows& to) {
  const int64_t n = std::min(kTileRows, from.count - first);
  for (int64_t r = 0; r < kTileRows; ++r) to.outliers[first + r].count = 0;
  for (int64_t block = 0; block < to.blocks; ++block) {
    alignas(64) int32_t pairs[kPairs][kLanes];
    alignas(64) int32_t turned[kLanes][kPairs];
    const int64_t k = block * kBlock, at = (first / kTileRows * to.blocks + block) * kTileRows;
    float scales[kLanes] = {};
    pack_beside(to.math, from.data + k * from.number + first, n, std::min(kBlock, from.depth - k),
                from.number, pairs[0], kLanes, scales);
    transpose(pairs[0], kLanes, kPairs, kTileRows, turned[0], kPairs);
    std::memcpy(to.numbers + at * kBlock, turned, kTileRows * kBlock * sizeof(int16_t));
    std::copy_n(scales, kTileRows, to.scales + at);
  }
}

void pack_panel(const Vectors& from, int64_t first, const Panels& to) {
  const auto pack = from.number == 1 ? pack_rows_as_panel : pack_columns_as_panel;
  for (int64_t block = 0; block < to.blocks; ++block) pack(from, first, to, block);
}

void multiply(const Rows& rows, int64_t first, const Panels& panels, int64_t column, float* sums,
              int64_t step) {
  const int64_t tile = first / kTileRows * rows.blocks, panel = column / kTileColumns * rows.blocks;
  const int16_t *a = rows.numbers + tile * kTileRows * kBlock,
                *b = panels.numbers + panel * kTileColumns * kBlock;
  const int64_t panel_size = rows.blocks * kTileColumns * kBlock * 2, part = first / kTileRows;
  const char* later =
      reinterpret_cast<const char*>(b) + panel_size + part % kMostTiles * panel_size / kMostTiles;
  if (rows.math == Math::bf16) return multiply_bf16(a, b, rows.blocks, later, sums, step);
  const float* scales = panels.scales + panel * kTileColumns;
  multiply_fixed(a, rows.scales + tile * kTileRows, b, scales, rows.blocks, later, sums, step);
  for (int64_t r = 0; r < kTileRows; ++r) {
    const Outliers& outliers = rows.outliers[first + r];
    for (int i = 0; i < outliers.count; ++i)
      add_outlier(outliers.value[i], outliers.at[i], b, scales, sums + r * step);
  }
}

#pragma GCC pop_options

#else

bool available(Math) { return false; }
void pack_tile(const ProductRows&, int64_t, int64_t, const Rows&) {}
void pack_tile(const Vectors&, int64_t, const Rows&) {}
void pack_panel(const Vectors&, int64_t, const Panels&) {}
void multiply(const Rows&, int64_t, const Panels&, int64_t, float*, int64_t) {}

#endif

}  // namespace sft::cpu::narrow
