// What the callers of engine/cpu/product-inl.h say and provide.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>

namespace sft::cpu {

// Rows lie `step` numbers apart and hold `depth` numbers each, which may overlap the next row's
// and, past `end`, count as zero.
struct ProductRows {
  const float* data;
  const float* end;
  int64_t step, depth;

  ProductRows from(int64_t row) const { return {data + row * step, end, step, depth}; }
};

// The same, less the numbers that lie `less` further on in memory.
struct ProductDifferences : ProductRows {
  int64_t less;
};

constexpr int64_t kProductRows = 126;    // of a chunk: whole tiles of 14 and of 6 rows
constexpr int64_t kProductDepth = 1024;  // of the sum at a time
// Between rows that were copied, or of sums: no two rows of a tile in the same set of the L1 cache.
constexpr int64_t kProductGap = 16;
constexpr int64_t kProductCopy = kProductRows * (kProductDepth + kProductGap);  // numbers
constexpr int64_t kProductColumns = 64;  // whose panels stay in the L2 cache beside the next ones

// What is multiplied next, of the same depth: it is fetched into the L2 cache meanwhile.
struct ProductNext {
  const float* panels;
  ProductRows rows;
};

struct ProductPanels {
  const float* data;
  int64_t columns;  // of whole panels
  ProductNext next;
};

// Numbers [kProductRows, step], or only those of the tile at hand, [rows of a tile, step].
struct ProductSums {
  float* data;
  int64_t step;
  bool all;
  bool add = false;  // to what is there
};

// How many of `rows` each thread works through at a time. No result depends on it.
inline int64_t product_chunk(int64_t rows) {
  const int64_t threads = omp_get_max_threads();
  const int64_t fewest = std::max<int64_t>(1, (rows + kProductRows - 1) / kProductRows);
  const int64_t chunks = (fewest + threads - 1) / threads * threads;
  return std::max<int64_t>(14, ((rows + chunks - 1) / chunks + 13) / 14 * 14);
}

}  // namespace sft::cpu
