// Matrix products of 16-bit numbers on AVX-512 (math modes fast16 and bf16); the sums are f32.
//
// fast16, int16 block fixed point: of kBlock numbers along the summed axis s = max |x| / 4095 (1 if
// all are tiny) and q = x / s, rounded half to even. The sum of a block of products is below 2^31,
// so it is exact; blocks are added as f32 in ascending order. A number of a row that is more than
// kStandsOut times as large as the others of its block on average is multiplied in f32 by itself,
// so that they keep their digits. A number that is not finite makes the scale of its block NaN.
// Errors of products of Gaussian numbers: 2.6e-4 of their rms (bf16: 2.4e-3).
//
// bf16: x rounded half to even; pairs of products are summed as vdpbf16ps does, which takes what is
// below 2^-126 for zero, in ascending order of pairs.
//
// A row has the same bits wherever it lies among others and however many threads there are.
#pragma once

#include <cstdint>

#include "engine/cpu/product.h"
#include "engine/math.h"

namespace sft::cpu::narrow {

constexpr int64_t kBlock = 128, kTileRows = 12, kTileColumns = 32;
constexpr int64_t kMostTiles = 10;                      // of a chunk
static_assert(kMostTiles * kTileRows <= kProductRows);  // buffers of sums serve both
constexpr float kStandsOut = 64;

// Whether this CPU has what products in `math` need.
bool available(Math math);

// Left side: rows in tiles.
struct Outliers {
  static constexpr int kMost = 15;  // of a row; what exceeds them stays in its block
  int32_t count;
  int32_t at[kMost];
  float value[kMost];
};
struct Rows {
  int16_t* numbers = nullptr;    // [tiles][blocks][kBlock / 2][kTileRows][2]
  float* scales = nullptr;       // [tiles][blocks][kTileRows]
  Outliers* outliers = nullptr;  // [tiles * kTileRows]
  int64_t blocks = 0;
  Math math = Math::fast16;
};
int64_t row_bytes(int64_t rows, int64_t depth);
// How many of `rows` each thread works through at a time, and memory for any such chunk: it stays
// in the L2 cache. No result depends on it.
int64_t chunk(int64_t rows, int64_t depth);
int64_t chunk_floats(int64_t depth);
Rows rows_in(void* memory, Math math, int64_t rows, int64_t depth);

// Right side: columns in panels.
struct Panels {
  int16_t* numbers = nullptr;  // [panels][blocks][kBlock / 2][kTileColumns][2]
  float* scales = nullptr;     // [panels][blocks][kTileColumns]
  int64_t blocks = 0;
  Math math = Math::fast16;
  explicit operator bool() const { return numbers; }
};
int64_t panel_bytes(int64_t columns, int64_t depth);
Panels panels_in(void* memory, Math math, int64_t columns, int64_t depth);

// A matrix whose vectors (rows of the left side, columns of the right) lie `vector` numbers apart,
// and their numbers `number` apart; one of the two is 1.
struct Vectors {
  const float* data;
  int64_t count, depth, vector, number;
};

// The tile from row first on, zeros for rows that are none.
void pack_tile(const ProductRows& from, int64_t rows, int64_t first, const Rows& to);
// The tiles of kTogether rows that lie side by side (vector == 1); no outliers. sums [kTogether]:
// of each row's numbers.
constexpr int64_t kTogether = 4 * kTileRows;
void pack_tiles(const Vectors& from, int64_t first, const Rows& to, float* sums);
// The panel from column first on.
void pack_panel(const Vectors& from, int64_t first, const Panels& to);

// sums [kTileRows, kTileColumns], rows `step` apart: the tile from row first on times the panel
// from column `column` on.
void multiply(const Rows& rows, int64_t first, const Panels& panels, int64_t column, float* sums,
              int64_t step);

}  // namespace sft::cpu::narrow
