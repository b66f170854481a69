// Weights of convolutions [out, in, taps] laid as operands of a product, and the way back.
#pragma once

#include "engine/context.h"
#include "engine/cuda/device.cuh"

namespace sft::cuda {

// [rows, taps, columns], of which element (r, q, c) is
//   weight[r / group * group_step + r % group * row_step + first + q * tap_step + c * column_step].
struct TapLayout {
  int64_t rows, taps, columns;
  int64_t group, group_step, row_step;
  int64_t first, tap_step, column_step;
  int64_t count() const { return rows * taps * columns; }
};

void lay_taps(Context& ctx, const float* weight, const TapLayout& layout, float* to);
void lay_taps(Context& ctx, const float* weight, const TapLayout& layout, bf16* to);

// sums [groups, splits, rows / groups, taps, columns] -> dweight [rows, columns, taps]; the splits
// in ascending order.
void sum_taps(Context& ctx, const float* sums, int64_t rows, int64_t groups, int splits,
              int64_t taps, int64_t columns, Grad dweight);

}  // namespace sft::cuda
