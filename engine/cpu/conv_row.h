// What the convolutions share around their tile of registers.
#pragma once

#include <cstdint>
#include <cstring>
#include <span>

#include "engine/context.h"
#include "engine/cpu/parallel.h"
#include "engine/cpu/thread_scratch.h"

namespace sft::cpu {

// v = sums * scale + shift;  pre = v;  y = GELU(norm over channels of pre).
struct ConvRow {
  const float* scale = nullptr;        // [C]; null: 1
  const float* shift = nullptr;        // [C]; null: 0
  const float* norm_weight = nullptr;  // [C]; null: no norm over channels
  const float* norm_bias = nullptr;
  float eps = 0;
};

// Rows [first, first + rows) of one utterance.
struct RowChunk {
  int32_t utterance, first, rows;
};

// Cuts utterances of length(b) rows each into chunks, counted from each one's own start: what is
// computed of an utterance depends on nothing else in the pack. In scratch; not filled when dry.
template <class Length>
std::span<const RowChunk> row_chunks(Context& ctx, int32_t batch, int32_t rows, Length&& length) {
  int64_t count = 0;
  for (int32_t b = 0; b < batch; ++b) count += (length(b) + rows - 1) / rows;
  auto* chunks = static_cast<RowChunk*>(ctx.scratch.take(count * sizeof(RowChunk)));
  if (ctx.dry) return {chunks, static_cast<size_t>(count)};
  RowChunk* next = chunks;
  for (int32_t b = 0; b < batch; ++b)
    for (int32_t first = 0; first < length(b); first += rows)
      *next++ = {b, first, std::min(rows, length(b) - first)};
  return {chunks, static_cast<size_t>(count)};
}

// b(depth, column) -> [tiles of `width` columns][depth][width], zeros behind the last column.
template <class At>
void pack_panels(int64_t depth, int64_t columns, int64_t width, float* out, At&& at) {
  parallel_for((columns + width - 1) / width, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile)
      for (int64_t k = 0; k < depth; ++k)
        for (int64_t i = 0; i < width; ++i) {
          const int64_t column = tile * width + i;
          out[(tile * depth + k) * width + i] = column < columns ? at(k, column) : 0.0f;
        }
  });
}

}  // namespace sft::cpu
