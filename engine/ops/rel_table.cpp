#include "engine/ops/rel_table.h"

#include <algorithm>

namespace sft {

Tensor rel_table_forward(Context& ctx, Tensor embedding, std::span<const int32_t> buckets) {
  const auto distances = static_cast<int64_t>(buckets.size());
  CHECK(embedding.shape.rank() == 2, "rel_table: the embedding is {}", embedding.shape);
  const int64_t rows = embedding.shape[0], H = embedding.shape[1];
  for (const int32_t bucket : buckets)
    CHECK(bucket >= 0 && bucket < rows, "rel_table: bucket {} of {}", bucket, rows);
  const Tensor table = ctx.activation({H, distances});
  ProfileScope profile(ctx.dry ? nullptr : ctx.profile, "rel_table", 0, 8.0 * H * distances);
  if (ctx.device == Device::cuda)
    return cuda::rel_table_forward(ctx, embedding, buckets, table), table;
  if (ctx.dry) return table;
  for (int64_t h = 0; h < H; ++h)
    for (int64_t d = 0; d < distances; ++d) table.row(h)[d] = embedding.row(buckets[d])[h];
  return table;
}

void rel_table_backward(Context& ctx, Tensor dtable, std::span<const int32_t> buckets,
                        Grad dembedding) {
  if (!dembedding) return;
  const auto distances = static_cast<int64_t>(buckets.size());
  ProfileScope profile(ctx.dry ? nullptr : ctx.profile, "rel_table.backward", 1.0 * dtable.count(),
                       8.0 * dtable.count());
  if (ctx.device == Device::cuda) return cuda::rel_table_backward(ctx, dtable, buckets, dembedding);
  if (ctx.dry) return;
  const Tensor& to = dembedding.to;
  if (!dembedding.add) std::fill_n(to.f32(), to.count(), 0.0f);
  for (int64_t d = 0; d < distances; ++d)
    for (int64_t h = 0; h < dtable.rows(); ++h) to.row(buckets[d])[h] += dtable.row(h)[d];
}

}  // namespace sft
