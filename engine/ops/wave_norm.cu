// wave_norm.cu: (x - mean) / sqrt(variance + eps) over the samples of each utterance.
//
// Layout   wave, out [S] f32, in slots
// Work     kParts blocks per utterance, each of every kParts-th stretch of samples: sums of x and
//          x^2 in double, one pair a block; then each block adds those up and writes its stretches
// Cost     12 bytes a sample: memory-bound (8 where the wave stays in the L2 cache)
// Numbers  f64 to the end, so that the uncentred sums lose nothing; an utterance's bits depend on
//          nothing else in the pack
#include "engine/cuda/lists.h"
#include "engine/cuda/reduce.cuh"
#include "engine/ops/wave_norm.h"

namespace sft::cuda {
namespace {

constexpr int kParts = 32, kThreads = 256;

struct Wave {
  const float* samples;
  const int32_t* starts;  // [B + 1]
  const int32_t* valid;   // [B]
};

struct Sums {
  double total, squares;
};

struct Shared {
  double warps[kThreads / 32];
};

__global__ void wave_sums_kernel(Wave wave, Sums* partial) {
  const int b = blockIdx.y, valid = wave.valid[b];
  const float* x = wave.samples + wave.starts[b];
  Sums sums{};
  for (int i = blockIdx.x * kThreads + threadIdx.x; i < valid; i += kParts * kThreads) {
    const double v = x[i];
    sums.total += v;
    sums.squares += v * v;
  }
  Shared& shared = shared_memory<Shared>();
  const double total = block_sum(sums.total, shared.warps);
  const double squares = block_sum(sums.squares, shared.warps);
  if (threadIdx.x == 0) partial[b * kParts + blockIdx.x] = {total, squares};
}

__global__ void wave_scale_kernel(Wave wave, const Sums* partial, double eps, float* out) {
  const int b = blockIdx.y, valid = wave.valid[b];
  const int64_t start = wave.starts[b], slot = wave.starts[b + 1] - start;
  double mean = 0, squares = 0;
  for (int part = 0; part < kParts; ++part) {
    mean += partial[b * kParts + part].total;
    squares += partial[b * kParts + part].squares;
  }
  mean /= valid;
  const double rstd = 1 / sqrt(max(squares / valid - mean * mean, 0.0) + eps);
  for (int i = blockIdx.x * kThreads + threadIdx.x; i < slot; i += kParts * kThreads)
    out[start + i] = i < valid ? static_cast<float>((wave.samples[start + i] - mean) * rstd) : 0.0f;
}

}  // namespace

void wave_norm(Context& ctx, Tensor wave, Slots slots, double eps, Tensor out) {
  ScratchScope scratch(ctx.scratch);
  const Wave on{wave.f32(), on_device(ctx, slots.starts), on_device(ctx, slots.valid)};
  const int64_t B = slots.batch(), bytes = B * kParts * static_cast<int64_t>(sizeof(Sums));
  auto* partial = static_cast<Sums*>(ctx.scratch.take(bytes));
  if (ctx.dry) return;
  launch(wave_sums_kernel, dim3(kParts, B), dim3(kThreads), sizeof(Shared), ctx.gpu->stream(), on,
         partial);
  launch(wave_scale_kernel, dim3(kParts, B), dim3(kThreads), 0, ctx.gpu->stream(), on, partial, eps,
         out.f32());
}

}  // namespace sft::cuda
