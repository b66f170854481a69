#include "engine/cuda/device.cuh"
#include "engine/cuda/partials.cuh"
#include "engine/cuda/runtime.h"

namespace sft::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void sum_partials_kernel(const float* partial, int64_t count, int64_t stride,
                                    int64_t width, float* to, bool add) {
  const int64_t c = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  if (c >= width) return;
  float sum = add ? to[c] : 0;
  for (int64_t i = 0; i < count; ++i) sum += partial[i * stride + c];
  to[c] = sum;
}

}  // namespace

void sum_partials(Context& ctx, const float* partial, int64_t count, int64_t stride, int64_t width,
                  Grad to) {
  launch(sum_partials_kernel, dim3(ceil_div(width, kThreads)), dim3(kThreads), 0, ctx.gpu->stream(),
         partial, count, stride, width, to.to.f32(), to.add);
}

}  // namespace sft::cuda
