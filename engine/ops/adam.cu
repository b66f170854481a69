// adam.cu: one update of a range of parameters.
//
// Layout   p, g, m, v [n] f32, any n; the scalars of the update in device memory
// Work     a thread, 4 neighbours: 16-byte accesses where all four buffers are aligned to 16 bytes
//          (a range may start anywhere in the flat buffers), else element by element
// Cost     28 bytes and 14 FLOP an element: memory-bound
// Numbers  f32 with IEEE division and root; the same bits every run
#include "engine/cuda/device.cuh"
#include "engine/cuda/lists.h"
#include "engine/cuda/runtime.h"
#include "engine/ops/adam.h"

namespace sft::cuda {
namespace {

constexpr int kThreads = 256;

__device__ __forceinline__ void update(float& p, float g, float& m, float& v,
                                       const AdamScalars& s) {
  g = s.clip * g + s.decay * p;
  m = s.beta1 * m + s.one_minus_beta1 * g;
  v = s.beta2 * v + s.one_minus_beta2 * g * g;
  p = s.shrink * p - s.rate * (m / (s.root_scale * sqrtf(v) + s.eps));
}

__global__ void adam_kernel(float* p, const float* g, float* m, float* v, int64_t n, bool aligned,
                            const AdamScalars* scalars) {
  const AdamScalars s = *scalars;
  const int64_t i = (blockIdx.x * int64_t{kThreads} + threadIdx.x) * 4;
  if (!aligned || i + 4 > n) {
    for (int64_t k = i; k < n && k < i + 4; ++k) update(p[k], g[k], m[k], v[k], s);
    return;
  }
  float4 weight = *reinterpret_cast<float4*>(p + i), mean = *reinterpret_cast<float4*>(m + i);
  float4 square = *reinterpret_cast<float4*>(v + i);
  const float4 grad = *reinterpret_cast<const float4*>(g + i);
  update(weight.x, grad.x, mean.x, square.x, s);
  update(weight.y, grad.y, mean.y, square.y, s);
  update(weight.z, grad.z, mean.z, square.z, s);
  update(weight.w, grad.w, mean.w, square.w, s);
  *reinterpret_cast<float4*>(p + i) = weight;
  *reinterpret_cast<float4*>(m + i) = mean;
  *reinterpret_cast<float4*>(v + i) = square;
}

}  // namespace

void adam(Context& ctx, Tensor p, Tensor g, Tensor m, Tensor v, const AdamScalars& scalars) {
  ScratchScope scratch(ctx.scratch);
  const AdamScalars* s = on_device(ctx, std::span<const AdamScalars>(&scalars, 1));
  if (ctx.dry) return;
  const auto address = [](const Tensor& t) { return reinterpret_cast<uintptr_t>(t.data); };
  const bool aligned = (address(p) | address(g) | address(m) | address(v)) % 16 == 0;
  const int64_t n = p.count();
  launch(adam_kernel, dim3(ceil_div(n, 4 * kThreads)), dim3(kThreads), 0, ctx.gpu->stream(),
         p.f32(), g.f32(), m.f32(), v.f32(), n, aligned, s);
}

}  // namespace sft::cuda
