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

void fetch(const float* from) { _mm_prefetch(reinterpret_cast<const char*>(from), _MM_HINT_T0); }

// a [16][16 words] turned.
void turn(__m512i (&a)[kLanes]) {
  __m512i b[kLanes];
#pragma GCC unroll 8
  for (int i = 0; i < kLanes; i += 2) {
    b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < kLanes; i += 4)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      a[i + 2 * j] = _mm512_unpacklo_epi64(b[i + j], b[i + 2 + j]);
      a[i + 2 * j + 1] = _mm512_unpackhi_epi64(b[i + j], b[i + 2 + j]);
    }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {  // quarter q of a[4 p + i] holds column 4 q + i of rows 4 p on
    const __m512i even[2] = {_mm512_shuffle_i32x4(a[i], a[4 + i], 0x88),
                             _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0x88)};
    const __m512i odd[2] = {_mm512_shuffle_i32x4(a[i], a[4 + i], 0xdd),
                            _mm512_shuffle_i32x4(a[8 + i], a[12 + i], 0xdd)};
    a[i] = _mm512_shuffle_i32x4(even[0], even[1], 0x88);
    a[4 + i] = _mm512_shuffle_i32x4(odd[0], odd[1], 0x88);
    a[8 + i] = _mm512_shuffle_i32x4(even[0], even[1], 0xdd);
    a[12 + i] = _mm512_shuffle_i32x4(odd[0], odd[1], 0xdd);
  }
}

__m512 larger(__m512 a, __m512 b) { return _mm512_max_ps(a, b); }
__m512 plus(__m512 a, __m512 b) { return _mm512_add_ps(a, b); }

// f over the lanes of each of 16 vectors: lane r of what is returned belongs to vectors[r].
template <__m512 (*f)(__m512, __m512)>
__m512 of_each(const __m512 (&vectors)[kLanes]) {
  __m512 pairs[8], fours[4], eights[2];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    pairs[i] = f(_mm512_unpacklo_ps(vectors[2 * i], vectors[2 * i + 1]),
                 _mm512_unpackhi_ps(vectors[2 * i], vectors[2 * i + 1]));
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const __m512d low = _mm512_castps_pd(pairs[2 * i]), high = _mm512_castps_pd(pairs[2 * i + 1]);
    fours[i] = f(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)),
                 _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
  }
  for (int i = 0; i < 2; ++i)
    eights[i] = f(_mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0x88),
                  _mm512_shuffle_f32x4(fours[2 * i], fours[2 * i + 1], 0xdd));
  return f(_mm512_shuffle_f32x4(eights[0], eights[1], 0x88),
           _mm512_shuffle_f32x4(eights[0], eights[1], 0xdd));
}

// 32 numbers -> 16 words of two, word i of which is pair kPairAt[i]: the order of _mm512_packs.
constexpr int kPairAt[kLanes] = {0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15};
__m512i words_of(Math math, __m512 first, __m512 second, __m512 inverse) {
  if (math == Math::bf16) {
    const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
    return _mm512_permutexvar_epi64(order,
                                    reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first)));
  }
  const __m512i low = _mm512_cvtps_epi32(_mm512_mul_ps(first, inverse));
  const __m512i high = _mm512_cvtps_epi32(_mm512_mul_ps(second, inverse));
  return _mm512_packs_epi32(low, high);
}

// A block of each of kCount <= 16 vectors whose numbers lie side by side.
template <int kCount>
class Stack {
 public:
  // n <= kBlock numbers of vector r; those behind them count as zeros. All vectors, then measure().
  void set(int64_t r, const float* from, int64_t n) {
    counts_[r] = static_cast<float>(n);
    if (n == kBlock) return copy(r, from);
    if (n > 0) std::memcpy(own_[r], from, n * sizeof(float));
    std::memset(own_[r] + n, 0, (kBlock - n) * sizeof(float));
    copy(r, own_[r]);
  }

  void measure() {
    most_ = of_each<larger>(each_most_);
    sum_ = of_each<plus>(each_sum_);
  }

  // of [kCount]; the blocks begin at number k.
  void take_outliers(int64_t k, Outliers* of) {
    uint32_t standing = stand_out() & kThere;
    if (!standing) return;
    for (; standing; standing &= standing - 1) {
      const int r = __builtin_ctz(standing);
      if (of[r].count == Outliers::kMost) continue;
      narrow::take_outliers(own_[r], static_cast<int64_t>(counts_[r]), k, of[r]);
      copy(r, own_[r]);
    }
    measure();
  }

  // Words [kPairs], pair_step apart; scales [kCount].
  void write(Math math, int32_t* to, int64_t pair_step, float* scales) const {
    const __m512 scale = scale_of(most_, sum_);
    alignas(64) float inverse[kLanes];
    _mm512_store_ps(inverse, _mm512_div_ps(_mm512_set1_ps(1), scale));
    _mm512_mask_storeu_ps(scales, kThere, scale);
    for (int64_t k = 0; k < kBlock; k += 2 * kLanes, to += kLanes * pair_step) {
      __m512i words[kLanes] = {};
#pragma GCC unroll 16
      for (int r = 0; r < kCount; ++r)
        words[r] = words_of(math, _mm512_load_ps(own_[r] + k), _mm512_load_ps(own_[r] + k + kLanes),
                            _mm512_set1_ps(inverse[r]));
      turn(words);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        _mm512_mask_storeu_epi32(to + kPairAt[i] * pair_step, kThere, words[i]);
    }
  }

 private:
  // Side by side: rows far apart may share a set of the L1 cache.
  void copy(int64_t r, const float* from) {
    Spread spread{_mm512_setzero_ps(), _mm512_setzero_ps()};
#pragma GCC unroll 8
    for (int64_t i = 0; i < kBlock; i += kLanes) {
      const __m512 x = _mm512_loadu_ps(from + i);
      _mm512_store_ps(own_[r] + i, x);
      add(spread, x);
      fetch(from + kBlock + i);
    }
    each_most_[r] = spread.most, each_sum_[r] = spread.sum;
  }

  // As stands_out.
  __mmask16 stand_out() const {
    const __m512 others = _mm512_sub_ps(sum_, most_), zero = _mm512_sub_ps(sum_, sum_);
    const __m512 count = _mm512_sub_ps(_mm512_loadu_ps(counts_), _mm512_set1_ps(1));
    __mmask16 which = _mm512_cmp_ps_mask(zero, _mm512_setzero_ps(), _CMP_EQ_OQ);
    which = _mm512_mask_cmp_ps_mask(which, most_, _mm512_set1_ps(1e-30f), _CMP_GT_OQ);
    return _mm512_mask_cmp_ps_mask(which, _mm512_mul_ps(most_, count),
                                   _mm512_mul_ps(_mm512_set1_ps(kStandsOut), others), _CMP_GT_OQ);
  }

  static constexpr __mmask16 kThere = (1u << kCount) - 1;
  __m512 each_most_[kLanes] = {}, each_sum_[kLanes] = {}, most_, sum_;
  alignas(64) float counts_[kLanes] = {};
  alignas(64) float own_[kCount][kBlock];
};

// Low and high numbers of pairs -> words.
__m512i paired(Math math, __m512 low, __m512 high, __m512 inverse) {
  if (math == Math::bf16) {
    const __m512i first = _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(low)));
    const __m512i second =
        _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(high)));
    return _mm512_or_si512(first, _mm512_slli_epi32(second, 16));
  }
  const __m512i first = _mm512_cvtps_epi32(_mm512_mul_ps(low, inverse));
  const __m512i second = _mm512_cvtps_epi32(_mm512_mul_ps(high, inverse));
  return _mm512_mask_blend_epi16(0xaaaaaaaa, first, _mm512_slli_epi32(second, 16));
}

// A block of vectors that lie side by side: copied once, from rows far apart, then read twice.
template <int kVectors>
class Beside {
 public:
  // n vectors' numbers [0, depth), `step` apart.
  Beside(const float* from, int64_t n, int64_t depth, int64_t step) {
    constexpr int64_t kAhead = 24;  // rows fetched before their turn
    Spread spread[kVectors];
    __m512 total[kVectors];
    for (int v = 0; v < kVectors; ++v)
      spread[v].most = spread[v].sum = total[v] = _mm512_setzero_ps();
    for (int64_t k = 0; k < depth; ++k, from += step)
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        const __m512 x = _mm512_maskz_loadu_ps(below(n - v * kLanes), from + v * kLanes);
        fetch(from + kAhead * step + v * kLanes);
        _mm512_store_ps(numbers_ + k * kWidth + v * kLanes, x);
        add(spread[v], x);
        total[v] = _mm512_add_ps(total[v], x);
      }
    std::fill(numbers_ + depth * kWidth, std::end(numbers_), 0.0f);
    for (int v = 0; v < kVectors; ++v) {
      const __m512 scale = scale_of(spread[v].most, spread[v].sum);
      _mm512_store_ps(scales_ + v * kLanes, scale);
      _mm512_store_ps(sums_ + v * kLanes, total[v]);
      _mm512_store_ps(inverse_ + v * kLanes, _mm512_div_ps(_mm512_set1_ps(1), scale));
    }
  }

  // Of `count` <= 16 vectors from `first` on: words [kPairs], pair_step apart; scales [count].
  void write(Math math, int64_t first, int64_t count, int32_t* to, int64_t pair_step,
             float* scales) const {
    const __m512 inverse = _mm512_loadu_ps(inverse_ + first);
    const float* from = numbers_ + first;
    const __mmask16 wanted = below(count);
    for (int64_t pair = 0; pair < kPairs; ++pair, from += 2 * kWidth, to += pair_step)
      _mm512_mask_storeu_epi32(
          to, wanted, paired(math, _mm512_loadu_ps(from), _mm512_loadu_ps(from + kWidth), inverse));
    std::copy_n(scales_ + first, count, scales);
  }

  void add_sums(float* to) const {
    for (int64_t i = 0; i < kWidth; ++i) to[i] += sums_[i];
  }

 private:
  static constexpr int64_t kWidth = kVectors * kLanes;
  alignas(64) float numbers_[kBlock * kWidth + kLanes];  // whole vectors are read at any `first`
  alignas(64) float scales_[kWidth];
  alignas(64) float sums_[kWidth];
  alignas(64) float inverse_[kWidth + kLanes] = {};
};

int32_t* words(int16_t* numbers) { return reinterpret_cast<int32_t*>(numbers); }

// The panel's columns are rows of the matrix.
void pack_rows_as_panel(const Vectors& from, int64_t first, const Panels& to, int64_t block) {
  const int64_t at = first / kTileColumns * to.blocks + block, k = block * kBlock;
  int32_t* panel = words(to.numbers) + at * kPairs * kTileColumns;
  for (int64_t c = 0; c < kTileColumns; c += kLanes) {
    Stack<kLanes> stack;
    for (int64_t i = 0; i < kLanes; ++i) {
      const int64_t vector = first + c + i;
      const int64_t n = vector < from.count ? std::min(kBlock, from.depth - k) : 0;
      stack.set(i, from.data + vector * from.vector + k, n);
    }
    stack.measure();
    stack.write(to.math, panel + c, kTileColumns, to.scales + at * kTileColumns + c);
  }
}

void pack_columns_as_panel(const Vectors& from, int64_t first, const Panels& to, int64_t block) {
  const int64_t at = first / kTileColumns * to.blocks + block, k = block * kBlock;
  const Beside<kTileColumns / kLanes> numbers(from.data + k * from.number + first,
                                              from.count - first, std::min(kBlock, from.depth - k),
                                              from.number);
  int32_t* panel = words(to.numbers) + at * kPairs * kTileColumns;
  for (int64_t c = 0; c < kTileColumns; c += kLanes)
    numbers.write(to.math, c, kLanes, panel + c, kTileColumns, to.scales + at * kTileColumns + c);
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
  // Fetched into the L1 cache before their turn.
  constexpr int64_t kAhead = 16 * 2 * kTileColumns, kRowsAhead = 32 * kTileRows;
  const int32_t* left = reinterpret_cast<const int32_t*>(a);
  for (int64_t pair = 0; pair < kPairs; ++pair, left += kTileRows, b += 2 * kTileColumns) {
    const __m512i right[2] = {_mm512_loadu_si512(b), _mm512_loadu_si512(b + kTileColumns)};
    _mm_prefetch(reinterpret_cast<const char*>(left + kRowsAhead), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(b + kAhead), _MM_HINT_T0);
    _mm_prefetch(reinterpret_cast<const char*>(b + kAhead + kTileColumns), _MM_HINT_T0);
    _mm_prefetch(later, _MM_HINT_T1);
    later += kLater;
#pragma GCC unroll 12
    for (int64_t r = 0; r < kTileRows; ++r) {
      const __m512i value = _mm512_set1_epi32(left[r]);
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
  Outliers* outliers = to.outliers + first;
  for (int64_t r = 0; r < kTileRows; ++r) outliers[r].count = 0;
  for (int64_t block = 0; block < to.blocks; ++block) {
    const int64_t k = block * kBlock, at = (first / kTileRows * to.blocks + block) * kTileRows;
    Stack<kTileRows> stack;
    for (int64_t r = 0; r < kTileRows; ++r) {
      const float* row = from.data + (first + r) * from.step + k;
      const int64_t depth = std::min(kBlock, from.depth - k);
      stack.set(r, row, first + r < rows ? std::clamp<int64_t>(from.end - row, 0, depth) : 0);
    }
    stack.measure();
    if (to.math == Math::fast16) stack.take_outliers(k, outliers);
    stack.write(to.math, words(to.numbers + at * kBlock), kTileRows, to.scales + at);
  }
}

void pack_tiles(const Vectors& from, int64_t first, const Rows& to, float* sums) {
  std::fill_n(sums, kTogether, 0.0f);
  const int64_t count = std::min(kTogether, from.count - first);
  for (int64_t r = 0; r < whole(count, kTileRows); ++r) to.outliers[first + r].count = 0;
  for (int64_t block = 0; block < to.blocks; ++block) {
    const int64_t k = block * kBlock;
    const Beside<kTogether / kLanes> numbers(from.data + k * from.number + first, count,
                                             std::min(kBlock, from.depth - k), from.number);
    numbers.add_sums(sums);
    for (int64_t r = 0; r < count; r += kTileRows) {
      const int64_t at = ((first + r) / kTileRows * to.blocks + block) * kTileRows;
      numbers.write(to.math, r, kTileRows, words(to.numbers + at * kBlock), kTileRows,
                    to.scales + at);
    }
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
void pack_tiles(const Vectors&, int64_t, const Rows&, float*) {}
void pack_panel(const Vectors&, int64_t, const Panels&) {}
void multiply(const Rows&, int64_t, const Panels&, int64_t, float*, int64_t) {}

#endif

}  // namespace sft::cpu::narrow
