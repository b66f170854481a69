// transpose.cu: [K, N] f32 -> [N, K].
//
// Layout   both dense f32
// Work     squares of 32 by 32 through shared memory, 8 rows a thread block at a time
// Cost     8KN bytes: memory-bound; once per batch and weight
#include "engine/cuda/device.cuh"
#include "engine/cuda/runtime.h"
#include "engine/ops/transpose.h"

namespace sft::cuda {
namespace {

constexpr int kSide = 32, kRows = 8;

struct Shared {
  float square[kSide][kSide + 1];
};

__global__ void transpose_kernel(const float* from, int K, int N, float* to) {
  Shared& shared = shared_memory<Shared>();
  const int x = threadIdx.x % kSide, y = threadIdx.x / kSide;
  const int n0 = blockIdx.x * kSide, k0 = blockIdx.y * kSide;
  for (int r = y; r < kSide; r += kRows)
    if (k0 + r < K && n0 + x < N)
      shared.square[r][x] = from[static_cast<int64_t>(k0 + r) * N + n0 + x];
  __syncthreads();
  for (int r = y; r < kSide; r += kRows)
    if (n0 + r < N && k0 + x < K)
      to[static_cast<int64_t>(n0 + r) * K + k0 + x] = shared.square[x][r];
}

}  // namespace

void transpose(Context& ctx, Tensor w, Tensor out) {
  const int K = static_cast<int>(w.shape[0]), N = static_cast<int>(w.shape[1]);
  launch(transpose_kernel, dim3(ceil_div(N, kSide), ceil_div(K, kSide)), dim3(kSide * kRows),
         sizeof(Shared), ctx.gpu->stream(), w.f32(), K, N, out.f32());
}

}  // namespace sft::cuda
