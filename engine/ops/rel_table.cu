// rel_table.cu: a row of an embedding for each distance, by its bucket, and its way back.
//
// Layout   embedding [N, H], table [H, distances] f32; buckets [distances] i32
// Work     forward a thread per entry of the table; backward a warp per entry of the embedding, its
//          lanes look through the distances
// Cost     some 20 KB and 20,000 entries, once a step: a launch each
// Numbers  sums in fixed order
#include "engine/ops/rel_table.h"

#include "engine/cuda/lists.h"
#include "engine/cuda/reduce.cuh"

namespace sft::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void rel_table_kernel(const float* embedding, const int32_t* buckets, int H,
                                 int distances, float* table) {
  const int i = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (i < H * distances) table[i] = embedding[buckets[i % distances] * H + i / distances];
}

__global__ void rel_table_back_kernel(const float* dtable, const int32_t* buckets, int H,
                                      int distances, int count, float* dembedding, bool add) {
  const int i = static_cast<int>(blockIdx.x) * warps() + warp();
  if (i >= count) return;
  float sum = 0;
  for (int d = lane(); d < distances; d += 32)
    if (buckets[d] == i / H) sum += dtable[i % H * distances + d];
  sum = warp_sum(sum);
  if (lane() == 0) dembedding[i] = add ? dembedding[i] + sum : sum;
}

}  // namespace

void rel_table_forward(Context& ctx, Tensor embedding, std::span<const int32_t> buckets,
                       Tensor table) {
  ScratchScope scratch(ctx.scratch);
  const int32_t* list = on_device(ctx, buckets);
  if (ctx.dry) return;
  launch(rel_table_kernel, dim3(ceil_div(table.count(), kThreads)), dim3(kThreads), 0,
         ctx.gpu->stream(), embedding.f32(), list, static_cast<int>(table.rows()),
         static_cast<int>(table.width()), table.f32());
}

void rel_table_backward(Context& ctx, Tensor dtable, std::span<const int32_t> buckets,
                        Grad dembedding) {
  ScratchScope scratch(ctx.scratch);
  const int32_t* list = on_device(ctx, buckets);
  if (ctx.dry) return;
  const int64_t count = dembedding.to.count();
  launch(rel_table_back_kernel, dim3(ceil_div(count, kThreads / 32)), dim3(kThreads), 0,
         ctx.gpu->stream(), dtable.f32(), list, static_cast<int>(dtable.rows()),
         static_cast<int>(dtable.width()), static_cast<int>(count), dembedding.to.f32(),
         dembedding.add);
}

}  // namespace sft::cuda
