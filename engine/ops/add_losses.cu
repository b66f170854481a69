// add_losses.cu: total += sum_n weight_n loss_n.
//
// Layout   losses, weights [N] f32; total [1] f64
// Work     one block; N is utterances, or masked frames, of a micro-batch
// Cost     8N bytes: the launch is what it costs
// Numbers  f64; a fixed order: the same bits every run
#include "engine/ops/add_losses.h"

#include "engine/cuda/lists.h"
#include "engine/cuda/reduce.cuh"
#include "engine/cuda/runtime.h"

namespace sft::cuda {
namespace {

constexpr int kThreads = 256;

struct LossShared {
  double warps[kThreads / 32];
};

__global__ void add_losses_kernel(const float* losses, const float* weights, int64_t N,
                                  double* total) {
  double sum = 0;
  for (int64_t n = threadIdx.x; n < N; n += kThreads) sum += double{weights[n]} * losses[n];
  sum = block_sum(sum, shared_memory<LossShared>().warps);
  if (threadIdx.x == 0) *total += sum;
}

}  // namespace

void add_losses(Context& ctx, Tensor losses, std::span<const float> weights, Tensor total) {
  ScratchScope scratch(ctx.scratch);
  const float* factors = on_device(ctx, weights);
  if (ctx.dry) return;
  launch(add_losses_kernel, dim3(1), dim3(kThreads), sizeof(LossShared), ctx.gpu->stream(),
         losses.f32(), factors, losses.count(), total.as<double>());
}

}  // namespace sft::cuda
