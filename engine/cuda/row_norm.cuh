// The norm of a row that a warp holds in registers: lane l has the elements (32 i + l) 8 + k of the
// row's C as values[i].v[k].
#pragma once

#include "engine/cuda/reduce.cuh"

namespace sft::cuda {

struct Moments {
  float mean, rstd;
};

// Centred: the mean first. Elements past C may be anything.
template <int V>
__device__ __forceinline__ Moments row_moments(const Float8 (&values)[V], int C, float eps) {
  float sum = 0, squares = 0;
#pragma unroll
  for (int i = 0; i < V; ++i)
#pragma unroll
    for (int k = 0; k < 8; ++k) sum += (i * 32 + lane()) * 8 + k < C ? values[i].v[k] : 0;
  const float mean = warp_sum(sum) / C;
#pragma unroll
  for (int i = 0; i < V; ++i)
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const float d = (i * 32 + lane()) * 8 + k < C ? values[i].v[k] - mean : 0;
      squares += d * d;
    }
  return {mean, rsqrtf(warp_sum(squares) / C + eps)};
}

// d: gradient of (x - mean) rstd, becomes that of x. Both are 0 past C.
template <int V>
__device__ __forceinline__ void row_norm_backward(Float8 (&d)[V], const Float8 (&normed)[V], int C,
                                                  float rstd) {
  float sum = 0, dot = 0;
#pragma unroll
  for (int i = 0; i < V; ++i)
#pragma unroll
    for (int k = 0; k < 8; ++k) sum += d[i].v[k], dot += d[i].v[k] * normed[i].v[k];
  sum = warp_sum(sum) / C, dot = warp_sum(dot) / C;
#pragma unroll
  for (int i = 0; i < V; ++i)
#pragma unroll
    for (int k = 0; k < 8; ++k) d[i].v[k] = rstd * (d[i].v[k] - sum - normed[i].v[k] * dot);
}

}  // namespace sft::cuda
