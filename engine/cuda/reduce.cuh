// Sums and maxima over a warp or a block, in an order that depends on nothing but the number of
// threads: the same bits on every run. Every thread gets the result.
#pragma once

#include "engine/cuda/device.cuh"

namespace sft::cuda {

struct Add {
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return a + b;
  }
};
struct Max {  // drops NaN
  template <class T>
  __device__ __forceinline__ T operator()(T a, T b) const {
    return max(a, b);
  }
};

// A butterfly over the 32 lanes of a whole warp; Op commutes.
#if defined(SFT_CUDA_EMULATED)
template <class Op, class T>
T warp_reduce(T value, emulator::Place where = std::source_location::current()) {
  return emulator::butterfly(value, Op{}, where);
}
#else
template <class Op, class T>
__device__ __forceinline__ T warp_reduce(T value) {
#pragma unroll
  for (int bit = 16; bit > 0; bit /= 2) value = Op{}(value, __shfl_xor_sync(~0u, value, bit));
  return value;
}
#endif

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
  return warp_reduce<Add>(value);
}
template <class T>
__device__ __forceinline__ T warp_max(T value) {
  return warp_reduce<Max>(value);
}

// Over a block of one dimension and whole warps. `shared` has one element per warp (at most 32) and
// is free again when the next block_* is called; starts and ends ordered against it by barriers.
template <class Op, class T>
__device__ __forceinline__ T block_reduce(T value, T* shared) {
  value = warp_reduce<Op>(value);
  __syncthreads();
  if (lane() == 0) shared[warp()] = value;
  __syncthreads();
  value = shared[0];
  for (int w = 1; w < warps(); ++w) value = Op{}(value, shared[w]);
  return value;
}

template <class T>
__device__ __forceinline__ T block_sum(T value, T* shared) {
  return block_reduce<Add>(value, shared);
}
template <class T>
__device__ __forceinline__ T block_max(T value, T* shared) {
  return block_reduce<Max>(value, shared);
}

}  // namespace sft::cuda
