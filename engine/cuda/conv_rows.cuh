// Which rows of a strided convolution over slots are valid: SlotList::assign_next for kernels.
#pragma once

#include "engine/cuda/device.cuh"
#include "engine/cuda/lists.h"
#include "engine/segments.h"

namespace sft::cuda {

struct ConvRows {
  const int32_t* starts;  // [batch + 1] of the input
  const int32_t* valid;   // [batch] of the input
  int batch, kernel, stride;

  // Of utterance b: its first output row, and how many are valid.
  __device__ int first(int b) const { return starts[b] / stride; }
  __device__ int count(int b) const {
    return valid[b] < kernel ? 0 : (valid[b] - kernel) / stride + 1;
  }
  // The utterance in whose slot an output row lies.
  __device__ int utterance(int64_t row) const {
    int low = 0, high = batch - 1;  // the last b with first(b) <= row
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (first(middle) <= row)
        low = middle;
      else
        high = middle - 1;
    }
    return low;
  }
  __device__ bool is_valid(int64_t row) const {
    const int b = utterance(row);
    return row - first(b) < count(b);
  }
};

// In scratch, for the op that asks.
inline ConvRows conv_rows(Context& ctx, Slots slots, int64_t kernel, int stride) {
  return {on_device(ctx, slots.starts), on_device(ctx, slots.valid), slots.batch(),
          static_cast<int>(kernel), stride};
}

}  // namespace sft::cuda
