#include "engine/cuda/partials.cuh"

#include "engine/cuda/device.cuh"
#include "engine/cuda/runtime.h"

namespace sft::cuda {
namespace {

constexpr int kWarps = 8;

struct PartialShared {
  float sums[kWarps][32];
};

// A lane per column. Each warp takes every eighth partial, so that loads do not wait for each
// other; then warp after warp.
__global__ void sum_partials_kernel(const float* partial, int64_t count, int64_t stride,
                                    int64_t width, float* to, bool add) {
  PartialShared& shared = shared_memory<PartialShared>();
  const int64_t c = blockIdx.x * int64_t{32} + lane();
  float sum = 0;
#pragma unroll 4
  for (int64_t i = warp(); i < count; i += kWarps)
    if (c < width) sum += partial[i * stride + c];
  shared.sums[warp()][lane()] = sum;
  __syncthreads();
  if (warp() > 0 || c >= width) return;
  sum = add ? to[c] : 0;
  for (int w = 0; w < kWarps; ++w) sum += shared.sums[w][lane()];
  to[c] = sum;
}

}  // namespace

void sum_partials(Context& ctx, const float* partial, int64_t count, int64_t stride, int64_t width,
                  Grad to) {
  launch(sum_partials_kernel, dim3(ceil_div(width, 32)), dim3(32 * kWarps), sizeof(PartialShared),
         ctx.gpu->stream(), partial, count, stride, width, to.to.f32(), to.add);
}

}  // namespace sft::cuda
