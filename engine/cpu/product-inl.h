// Rows times packed panels, in blocks that stay in the caches: what convolutions and linear layers
// are made of. Included by each kernel file once per target.
//
// A tile of rows lies in the L1 cache while the panels of kProductColumns columns pass by, which
// lie in L2 while the tiles of a chunk take turns; meanwhile each tile fetches its share of the
// panels that follow. Every sum is made in the same order wherever its row and column lie.
//
// Reached by one core of an Intel Emerald Rapids, panels in huge pages, weights of twelve layers in
// turn, other work beside: 92 % of its FMA peak at depths 768 and 1024 and 91 % at 3072 (84 and 83
// % with 256 columns and no fetching ahead into L2).
#if defined(SFT_PRODUCT_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SFT_PRODUCT_INL_H
#undef SFT_PRODUCT_INL_H
#else
#define SFT_PRODUCT_INL_H
#endif

#include <cstring>

#include "engine/cpu/conv_tile-inl.h"
#include "engine/cpu/product.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

// Sums, two loads of b and a broadcast: 31 of 32 registers, or 15 of 16.
constexpr int kProductTile = HWY_MAX_BYTES >= 64 ? 14 : 6;
// Numbers of the panels to come that a tile fetches per step: all tiles of a chunk, a whole panel.
constexpr int kProductTiles = cpu::kProductRows / kProductTile;
constexpr int kProductLater = (2 * HWY_LANES(float) + kProductTiles - 1) / kProductTiles;

// copy [rows rounded up to tiles, kProductDepth + gap] = numbers [first, first + depth) of each
// row, zeros for rows that are none.
inline void copy_chunk(const cpu::ProductRows& a, int64_t rows, int64_t first, int64_t depth,
                       float* copy) {
  const int64_t whole = (rows + kProductTile - 1) / kProductTile * kProductTile;
  for (int64_t r = 0; r < whole; ++r, copy += cpu::kProductDepth + cpu::kProductGap) {
    const float* from = a.data + r * a.step + first;
    const int64_t there = r < rows ? std::clamp<int64_t>(a.end - from, 0, depth) : 0;
    if (there) std::memcpy(copy, from, there * sizeof(float));
    std::memset(copy + there, 0, (depth - there) * sizeof(float));
  }
}

inline void copy_chunk(const cpu::ProductDifferences& a, int64_t rows, int64_t first, int64_t depth,
                       float* copy) {
  copy_chunk(static_cast<const cpu::ProductRows&>(a), rows, first, depth, copy);
  for (int64_t r = 0; r < rows; ++r, copy += cpu::kProductDepth + cpu::kProductGap) {
    const float* from = a.data + r * a.step + first + a.less;
    for_vectors(std::clamp<int64_t>(a.end - from, 0, depth), [&](int64_t i, int64_t n) {
      store(hn::Sub(load(copy + i, n), load(from + i, n)), copy + i, n);
    });
  }
}

// Up to kProductRows rows, ProductRows or ProductDifferences, times panels of two vectors each,
// a.depth long. copy: kProductCopy numbers. finish(sums, step, r, count, c, n) follows when the
// sums of rows [r, r + count) and columns [c, c + n) are complete, while they are near. Unless
// sums.all, a.depth is at most kProductDepth.
template <class Rows, class Finish>
HWY_INLINE void panel_product(const Rows& a, int64_t rows, const cpu::ProductPanels& panels,
                              float* copy, const cpu::ProductSums& sums, Finish&& finish) {
  constexpr int kRowStep = cpu::kProductDepth + cpu::kProductGap;
  const int64_t width = 2 * lanes(), tile = kProductTile;
  const int64_t blocks = (a.depth + cpu::kProductDepth - 1) / cpu::kProductDepth;
  const int64_t most = (a.depth + blocks - 1) / blocks;  // equal blocks
  const auto panel = [&](int64_t column, int64_t k) {
    return panels.data + column * a.depth + k * width;
  };
  for (int64_t k = 0; k < a.depth; k += most) {
    const int64_t depth = std::min(most, a.depth - k);
    const bool ends = k + depth == a.depth;
    const cpu::ProductRows& copied = ends ? panels.next.rows : a;
    copy_chunk(a, rows, k, depth, copy);
    for (int64_t first = 0; first < panels.columns; first += cpu::kProductColumns) {
      const int64_t n = std::min(cpu::kProductColumns, panels.columns - first);
      const float* next = first + n < panels.columns ? panel(first + n, k)
                          : ends                     ? panels.next.panels
                                                     : panel(0, k + depth);
      for (int64_t r = 0; r < rows; r += tile) {
        float* to = sums.data + (sums.all ? r * sums.step + first : 0);
        const float* later = next + r / tile * depth * kProductLater;
        for (int64_t c = 0; c < n; c += width) {
          const int64_t row = r + std::min((first + c) / width, tile - 1);  // each has its turn
          conv_tile<2, kRowStep, kProductTile, 16, kProductLater>(
              copy + r * kRowStep, panel(first + c, k), {1, depth, 0, 1, width}, to + c, sums.step,
              k == 0 && !sums.add, later + c * a.depth,
              copied.data + row * copied.step + (ends ? 0 : k + depth));
        }
        if (ends) finish(to, sums.step, r, std::min(tile, rows - r), first, n);
      }
    }
  }
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
