// Softmax of groups of columns and its gradient, a warp for each group of a row. f32.
#pragma once

#include "engine/cuda/reduce.cuh"
#include "engine/cuda/row.cuh"

namespace sft::cuda {

constexpr int kSoftmaxWarps = 8;  // of a block

// A group of a row: `i` counts row by row.
struct SoftmaxGroup {
  int64_t row = 0;
  int group = 0;

  static __device__ __forceinline__ int64_t number() {
    return blockIdx.x * int64_t{kSoftmaxWarps} + warp();
  }
  static __device__ __forceinline__ SoftmaxGroup of(int64_t i, int groups) {
    return {i / groups, static_cast<int>(i % groups)};
  }
};

inline dim3 softmax_grid(int64_t rows, int groups) {
  return dim3(static_cast<unsigned>(ceil_div(rows * groups, kSoftmaxWarps)));
}

// y = softmax(y / temperature); each lane has written the y that it reads.
__device__ __forceinline__ void warp_softmax(float* y, int V, float top, float temperature) {
  float total = 0;
  for (int v = lane(); v < V; v += 32) total += y[v] = expf((y[v] - top) / temperature);
  const float share = 1 / warp_sum(total);
  for (int v = lane(); v < V; v += 32) y[v] *= share;
}

// dx (+)= factor p (dp - sum p dp)
template <class T>
__device__ __forceinline__ void warp_softmax_gradient(const float* p, const float* dp, int V,
                                                      float factor, T* dx, bool add) {
  float product = 0;
  for (int v = lane(); v < V; v += 32) product += p[v] * dp[v];
  product = warp_sum(product);
  for (int v = lane(); v < V; v += 32) {
    const float d = factor * p[v] * (dp[v] - product);
    dx[v] = from_float<T>(add ? to_float(dx[v]) + d : d);
  }
}

}  // namespace sft::cuda
