// Segments as kernels read them.
#pragma once

#include "engine/cuda/device.cuh"
#include "engine/cuda/lists.h"
#include "engine/segments.h"

namespace sft::cuda {

struct DeviceSegments {
  const int32_t* starts = nullptr;      // [batch + 1]
  const int32_t* utterances = nullptr;  // [batch]
  int batch = 0;

  __device__ int length(int b) const { return starts[b + 1] - starts[b]; }
  // The utterance of a row of the pack. A search: once per row, not once per vector.
  __device__ __forceinline__ int of(int64_t row) const {
    int b = 0;
    for (int end = batch; end - b > 1;) {
      const int middle = (b + end) / 2;
      (starts[middle] <= row ? b : end) = middle;
    }
    return b;
  }
};

// For the op that asks, inside its ScratchScope; also in a dry step.
inline DeviceSegments on_device(Context& ctx, const Segments& segments) {
  return {on_device(ctx, segments.starts), on_device(ctx, segments.utterances), segments.batch()};
}

}  // namespace sft::cuda
