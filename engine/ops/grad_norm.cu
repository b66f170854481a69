// grad_norm.cu: the norm of ranges of gradients.
//
// Layout   ranges [n] f32, any n, any start; partial sums and the norm f64
// Work     a block sums kChunk elements, 16-byte loads where a range is aligned to 16 bytes; then
//          one block adds up the partial sums of all ranges
// Cost     4 bytes, one multiply-add in f64 an element: memory-bound where f64 runs at half of f32
// Numbers  f64 throughout; a fixed order: the same bits every run
#include "engine/cuda/reduce.cuh"
#include "engine/cuda/runtime.h"
#include "engine/ops/grad_norm.h"

namespace sft::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kChunk = 1 << 14;  // elements of a block

struct SumShared {
  double warps[kThreads / 32];
};

__device__ __forceinline__ double square(float x) { return double{x} * x; }

// partial[blockIdx.x]: of elements [kChunk blockIdx.x, ...).
__global__ void square_sum_kernel(const float* x, int64_t n, bool aligned, double* partial) {
  const int64_t begin = blockIdx.x * int64_t{kChunk}, end = min(begin + kChunk, n);
  double sum = 0;
  for (int64_t i = begin + threadIdx.x * 4; i < end; i += kThreads * 4) {
    if (aligned && i + 4 <= end) {
      const float4 v = *reinterpret_cast<const float4*>(x + i);
      sum += square(v.x) + square(v.y) + square(v.z) + square(v.w);
    } else {
      for (int64_t k = i; k < end && k < i + 4; ++k) sum += square(x[k]);
    }
  }
  sum = block_sum(sum, shared_memory<SumShared>().warps);
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

__global__ void add_partials_kernel(const double* partial, int64_t count, double* norm) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < count; i += kThreads) sum += partial[i];
  sum = block_sum(sum, shared_memory<SumShared>().warps);
  if (threadIdx.x == 0) *norm = sqrt(sum);
}

}  // namespace

void grad_norm(Context& ctx, std::span<const Tensor> ranges, Tensor norm) {
  int64_t count = 0;
  for (const Tensor& range : ranges) count += ceil_div(range.count(), kChunk);
  ScratchScope scratch(ctx.scratch);
  double* const partials = ctx.temporary({count}, Dtype::f64).as<double>();
  if (ctx.dry) return;
  double* partial = partials;
  for (const Tensor& range : ranges) {
    const int64_t blocks = ceil_div(range.count(), kChunk);
    const bool aligned = reinterpret_cast<uintptr_t>(range.data) % 16 == 0;
    launch(square_sum_kernel, dim3(blocks), dim3(kThreads), sizeof(SumShared), ctx.gpu->stream(),
           range.f32(), range.count(), aligned, partial);
    partial += blocks;
  }
  launch(add_partials_kernel, dim3(1), dim3(kThreads), sizeof(SumShared), ctx.gpu->stream(),
         partials, count, norm.as<double>());
}

}  // namespace sft::cuda
