// Dropout masks on the device: those of engine/rng.h, the same as on the CPU. One Philox call gives
// the factors of 8 neighbours of a row.
#pragma once

#include "engine/cuda/device.cuh"
#include "engine/cuda/lists.h"
#include "engine/cuda/segments.cuh"

namespace sft::cuda {

// A place that drops, as kernels take it. It may be used with another `site` (attention: a head's).
struct DropoutPlace {
  const Rng* rng = nullptr;  // on the device: the update changes from step to step
  uint32_t site = 0;
  uint32_t threshold = 0;  // 0: nothing drops, everything is multiplied with scale
  float scale = 1;

  __host__ __device__ explicit operator bool() const { return threshold != 0; }

  // What elements 8 call ... 8 call + 7 of an utterance are multiplied with.
  __device__ __forceinline__ Float8 factors(uint32_t utterance, uint32_t call) const {
    Float8 out;
    if (threshold == 0) {
#pragma unroll
      for (int i = 0; i < 8; ++i) out.v[i] = scale;
      return out;
    }
    const PhiloxWords words = philox(rng->seed, call, utterance, rng->update, site);
#pragma unroll
    for (int i = 0; i < 8; ++i) out.v[i] = bits16(words, i) >= threshold ? scale : 0;
    return out;
  }
};

// For the op that asks, inside its ScratchScope; also in a dry step.
inline DropoutPlace dropout_place(Context& ctx, Dropout dropout) {
  if (!dropout) return {};
  return {on_device(ctx, std::span<const Rng>(&ctx.rng, 1)), dropout.site, dropout.threshold(),
          dropout.scale()};
}

// The rows of a packed matrix [T, width]: inside one utterance row by row, every row starting on a
// fresh call.
struct DropoutRows {
  DropoutPlace place;
  DeviceSegments segments;
  uint32_t calls = 0;  // of a row

  __host__ __device__ explicit operator bool() const { return static_cast<bool>(place); }

  struct Row {
    uint32_t utterance = 0, call = 0;
  };
  // A search: once per row, not once per vector.
  __device__ __forceinline__ Row at(int64_t t) const {
    if (!place) return {};
    const int b = segments.of(t);
    return {static_cast<uint32_t>(segments.utterances[b]),
            static_cast<uint32_t>(t - segments.starts[b]) * calls};
  }
  // Of columns c ... c + 7 of that row; c % 8 == 0.
  __device__ __forceinline__ Float8 factors(Row row, int c) const {
    return place.factors(row.utterance, row.call + static_cast<uint32_t>(c) / 8);
  }
};

// As dropout_place; `segments` may be empty if nothing drops.
inline DropoutRows dropout_rows(Context& ctx, Dropout dropout, const Segments& segments,
                                int64_t width) {
  if (!dropout) return {};
  return {dropout_place(ctx, dropout), on_device(ctx, segments),
          static_cast<uint32_t>((width + 7) / 8)};
}

}  // namespace sft::cuda
