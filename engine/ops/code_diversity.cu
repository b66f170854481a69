// code_diversity.cu: the mean softmax of N rows, and exp of its entropy in each group.
//
// Layout   x, dx [N, G V] f32 or bf16; soft [N, G V], mean [G V], loss, perplexity [1] f32
// Work     a warp per group of a row; a block per 32 columns for the means; one block for the
//          entropies
// Cost     forward x read, soft written and read; backward soft read twice, dx written:
//          memory-bound
// Numbers  f32 in a row, f64 over rows and codes; a fixed order: the same bits every run
#include "engine/ops/code_diversity.h"

#include "engine/cuda/lists.h"
#include "engine/cuda/runtime.h"
#include "engine/cuda/softmax.cuh"

namespace sft::cuda {
namespace {

constexpr double kLeast = 1e-7;
constexpr int kThreads = 256;

template <class T>
__global__ void probabilities_kernel(Matrix<T> x, Matrix<float> soft, int64_t N, int G, int V) {
  const int64_t i = SoftmaxGroup::number();
  if (i >= N * G) return;
  const auto [n, g] = SoftmaxGroup::of(i, G);
  const T* from = x.row(n) + g * V;
  float* to = soft.row(n) + g * V;
  float top = -__builtin_inff();
  for (int v = lane(); v < V; v += 32) top = fmaxf(top, to[v] = to_float(from[v]));
  warp_softmax(to, V, warp_max(top), 1);
}

struct MeanShared {
  double sums[kThreads / 32][32];
};

// A block per 32 columns; a warp takes every eighth row.
__global__ void mean_kernel(Matrix<float> soft, int64_t N, int codes, float* mean) {
  auto& shared = shared_memory<MeanShared>();
  const int c = blockIdx.x * 32 + lane();
  double sum = 0;
  for (int64_t n = warp(); n < N; n += kThreads / 32)
    if (c < codes) sum += soft.row(n)[c];
  shared.sums[warp()][lane()] = sum;
  __syncthreads();
  if (warp() != 0 || c >= codes) return;
  sum = 0;
  for (int w = 0; w < kThreads / 32; ++w) sum += shared.sums[w][lane()];
  mean[c] = N ? static_cast<float>(sum / static_cast<double>(N)) : 0;
}

struct EntropyShared {
  double warps[kThreads / 32];
};

__device__ __forceinline__ double group_perplexity(const float* p, int V, double* warps) {
  double entropy = 0;
  for (int v = threadIdx.x; v < V; v += kThreads)
    entropy -= static_cast<double>(p[v]) * log(p[v] + kLeast);
  return exp(block_sum(entropy, warps));
}

__global__ void perplexity_kernel(const float* mean, int64_t N, int G, int V, float* loss,
                                  float* perplexity) {
  double total = 0;
  for (int g = 0; g < G; ++g)
    total += group_perplexity(mean + g * V, V, shared_memory<EntropyShared>().warps);
  const double codes = static_cast<double>(G) * V;
  if (threadIdx.x != 0) return;
  *perplexity = N ? static_cast<float>(total) : 0;
  *loss = N ? static_cast<float>((codes - total) / codes) : 0;
}

// A block per group.
__global__ void mean_gradient_kernel(const float* mean, int G, int V, float* dmean) {
  const float* p = mean + blockIdx.x * V;
  const double share =
      group_perplexity(p, V, shared_memory<EntropyShared>().warps) / (static_cast<double>(G) * V);
  for (int v = threadIdx.x; v < V; v += kThreads)
    dmean[blockIdx.x * V + v] =
        static_cast<float>(share * (log(p[v] + kLeast) + p[v] / (p[v] + kLeast)));
}

template <class T>
__global__ void probability_gradient_kernel(Matrix<float> soft, const float* dmean,
                                            const float* weight, Matrix<T> dx, bool add, int64_t N,
                                            int G, int V) {
  const int64_t i = SoftmaxGroup::number();
  if (i >= N * G) return;
  const auto [n, g] = SoftmaxGroup::of(i, G);
  warp_softmax_gradient(soft.row(n) + g * V, dmean + g * V, V, *weight / static_cast<float>(N),
                        dx.row(n) + g * V, add);
}

}  // namespace

void code_diversity_forward(Context& ctx, Tensor x, int groups, const CodeDiversityOut& out) {
  if (ctx.dry) return;
  const int64_t N = x.rows();
  const int codes = static_cast<int>(x.width()), V = codes / groups;
  with_element(x.dtype, [&]<class T>() {
    launch(probabilities_kernel<T>, softmax_grid(N, groups), dim3(32 * kSoftmaxWarps), 0,
           ctx.gpu->stream(), matrix<T>(x), matrix<float>(out.soft), N, groups, V);
  });
  launch(mean_kernel, dim3(static_cast<unsigned>(ceil_div(codes, 32))), dim3(kThreads),
         sizeof(MeanShared), ctx.gpu->stream(), matrix<float>(out.soft), N, codes, out.mean.f32());
  launch(perplexity_kernel, dim3(1), dim3(kThreads), sizeof(EntropyShared), ctx.gpu->stream(),
         out.mean.f32(), N, groups, V, out.loss.f32(), out.perplexity.f32());
}

void code_diversity_backward(Context& ctx, int groups, std::span<const float> weight,
                             const CodeDiversityOut& out, Grad dx) {
  const int64_t N = out.soft.rows();
  const int codes = static_cast<int>(out.soft.width()), V = codes / groups;
  ScratchScope scratch(ctx.scratch);
  const float* factor = on_device(ctx, weight);
  const Tensor dmean = ctx.temporary({codes});
  if (ctx.dry) return;
  launch(mean_gradient_kernel, dim3(static_cast<unsigned>(groups)), dim3(kThreads),
         sizeof(EntropyShared), ctx.gpu->stream(), out.mean.f32(), groups, V, dmean.f32());
  with_element(dx.to.dtype, [&]<class T>() {
    launch(probability_gradient_kernel<T>, softmax_grid(N, groups), dim3(32 * kSoftmaxWarps), 0,
           ctx.gpu->stream(), matrix<float>(out.soft), dmean.f32(), factor, matrix<T>(dx.to),
           dx.add, N, groups, V);
  });
}

}  // namespace sft::cuda
