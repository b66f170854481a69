// right_rows.cu: right_n = 1 where the first of the largest logits of row n is its label's.
//
// Layout   logits [N, V] f32 or bf16, any V; labels [N] i32; right [N] f32
// Work     a warp per row, one pass: nothing may be larger than the label's logit, and nothing in
//          front of it as large
// Cost     NV elements read: memory-bound
#include "engine/ops/right_rows.h"

#include "engine/cuda/lists.h"
#include "engine/cuda/reduce.cuh"
#include "engine/cuda/row.cuh"
#include "engine/cuda/runtime.h"

namespace sft::cuda {
namespace {

constexpr int kWarps = 8;  // rows of a block

template <class T>
__global__ void right_rows_kernel(Matrix<T> logits, const int32_t* labels, float* right, int64_t N,
                                  int V) {
  const int64_t n = blockIdx.x * int64_t{kWarps} + warp();
  if (n >= N) return;
  const int label = labels[n];
  const float own = to_float(logits.row(n)[label]);
  int beaten = own != own;
  for (int c = lane() * 8; c < V; c += 256) {
    const Float8 x = load_row(logits.row(n), c, V, logits.whole);
#pragma unroll
    for (int k = 0; k < 8; ++k) beaten |= c + k < label ? x.v[k] >= own : c + k < V && x.v[k] > own;
  }
  beaten = warp_max(beaten);
  if (lane() == 0) right[n] = beaten ? 0.0f : 1.0f;
}

}  // namespace

void right_rows(Context& ctx, Tensor logits, std::span<const int32_t> labels, Tensor right) {
  const int64_t N = logits.rows();
  ScratchScope scratch(ctx.scratch);
  const int32_t* units = on_device(ctx, labels);
  if (ctx.dry) return;
  with_element(logits.dtype, [&]<class T>() {
    launch(right_rows_kernel<T>, dim3(ceil_div(N, kWarps)), dim3(32 * kWarps), 0, ctx.gpu->stream(),
           matrix<T>(logits), units, right.f32(), N, static_cast<int>(logits.width()));
  });
}

}  // namespace sft::cuda
