#include "engine/ops/right_rows.h"

#include "engine/cpu/parallel.h"

namespace sft {
namespace {

constexpr int64_t kRows = 64;

bool right(const float* row, int64_t V, int32_t label) {
  const float own = row[label];
  bool beaten = own != own;
  for (int64_t v = 0; v < label; ++v) beaten |= row[v] >= own;
  for (int64_t v = label; v < V; ++v) beaten |= row[v] > own;
  return !beaten;
}

}  // namespace

Tensor right_rows(Context& ctx, Tensor logits, std::span<const int32_t> labels) {
  const int64_t N = logits.rows(), V = logits.width();
  CHECK(static_cast<int64_t>(labels.size()) == N, "right_rows: {} labels, logits are {}",
        labels.size(), logits.shape);
  const Tensor out = ctx.activation({N});
  ProfileScope profile(ctx.dry ? nullptr : ctx.profile, "right_rows", 1.0 * N * V, 4.0 * N * V);
  if (ctx.device == Device::cuda) return cuda::right_rows(ctx, logits, labels, out), out;
  if (ctx.dry) return out;
  cpu::parallel_for(N, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) out.f32()[n] = right(logits.row(n), V, labels[n]);
  });
  return out;
}

}  // namespace sft
