// cross_entropy.cu: loss_n = lse_n - x_n,label(n), lse_n = log sum_v exp(x_nv); softmax going back.
//
// Layout   logits, dlogits [N, V] f32 or bf16, any V; labels [N] i32; weights, losses, lse [N] f32
// Work     a warp per row. Forward: one pass, a lane keeps the maximum it has seen and its sum of
//          exponentials, rescaled once per 8 elements. Backward: one pass
// Cost     forward NV elements read, backward read and written (twice read when added to); 1.1
//          exponentials an element: memory-bound
// Numbers  f32 sums; the same bits every run. A row with a NaN or +inf, or of -inf only, gives NaN
#include "engine/ops/cross_entropy.h"

#include "engine/cuda/lists.h"
#include "engine/cuda/reduce.cuh"
#include "engine/cuda/row.cuh"
#include "engine/cuda/runtime.h"

namespace sft::cuda {
namespace {

constexpr int kWarps = 8;  // rows of a block
constexpr float kNone = -__builtin_inff();

__device__ __forceinline__ float rescaling(float from, float to) {
  return from == kNone ? 0 : expf(from - to);
}

template <class T>
__global__ void cross_entropy_forward_kernel(Matrix<T> logits, const int32_t* labels, float* losses,
                                             float* lse, int64_t N, int V) {
  const int64_t n = blockIdx.x * int64_t{kWarps} + warp();
  if (n >= N) return;
  const T* row = logits.row(n);
  float most = kNone, sum = 0;
  for (int c = lane() * 8; c < V; c += 256) {
    const Float8 x = load_row(row, c, V, logits.whole);
    float top = most;
#pragma unroll
    for (int k = 0; k < 8; ++k)
      if (c + k < V) top = fmaxf(top, x.v[k]);
    sum *= rescaling(most, top);
    most = top;
#pragma unroll
    for (int k = 0; k < 8; ++k)
      if (c + k < V && x.v[k] != kNone) sum += expf(x.v[k] - top);
  }
  const float top = warp_max(most);
  const float total = top + logf(warp_sum(sum * rescaling(most, top)));
  if (lane() == 0) lse[n] = total, losses[n] = total - to_float(row[labels[n]]);
}

template <class T>
__global__ void cross_entropy_backward_kernel(Matrix<T> logits, const int32_t* labels,
                                              const float* weights, const float* lse,
                                              Matrix<T> dlogits, bool add, int64_t N, int V) {
  const int64_t n = blockIdx.x * int64_t{kWarps} + warp();
  if (n >= N) return;
  const int label = labels[n];
  const float weight = weights[n], total = lse[n];
  for (int c = lane() * 8; c < V; c += 256) {
    Float8 x = load_row(logits.row(n), c, V, logits.whole);
    Float8 out{};
    if (add) out = load_row(dlogits.row(n), c, V, dlogits.whole);
#pragma unroll
    for (int k = 0; k < 8; ++k)
      out.v[k] += weight * (expf(x.v[k] - total) - (c + k == label ? 1.0f : 0.0f));
    store_row(dlogits.row(n), c, V, dlogits.whole, out);
  }
}

}  // namespace

void cross_entropy_forward(Context& ctx, Tensor logits, std::span<const int32_t> labels,
                           const CrossEntropyOut& out) {
  const int64_t N = logits.rows();
  ScratchScope scratch(ctx.scratch);
  const int32_t* units = on_device(ctx, labels);
  if (ctx.dry) return;
  with_element(logits.dtype, [&]<class T>() {
    launch(cross_entropy_forward_kernel<T>, dim3(ceil_div(N, kWarps)), dim3(32 * kWarps), 0,
           ctx.gpu->stream(), matrix<T>(logits), units, out.losses.f32(), out.lse.f32(), N,
           static_cast<int>(logits.width()));
  });
}

void cross_entropy_backward(Context& ctx, Tensor logits, std::span<const int32_t> labels,
                            std::span<const float> weights, Tensor lse, Grad dlogits) {
  const int64_t N = logits.rows();
  ScratchScope scratch(ctx.scratch);
  const int32_t* units = on_device(ctx, labels);
  const float* factors = on_device(ctx, weights);
  if (ctx.dry) return;
  with_element(logits.dtype, [&]<class T>() {
    launch(cross_entropy_backward_kernel<T>, dim3(ceil_div(N, kWarps)), dim3(32 * kWarps), 0,
           ctx.gpu->stream(), matrix<T>(logits), units, factors, lse.f32(), matrix<T>(dlogits.to),
           dlogits.add, N, static_cast<int>(logits.width()));
  });
}

}  // namespace sft::cuda
