#include "engine/ops/add_losses.h"

namespace sft {

void add_losses(Context& ctx, Tensor losses, std::span<const float> weights, Tensor total) {
  const auto N = static_cast<int64_t>(weights.size());
  CHECK(losses.count() == N && losses.dense() && losses.dtype == Dtype::f32,
        "add_losses: {} weights, losses are {} {}", N, losses.dtype, losses.shape);
  CHECK(total.count() == 1, "add_losses: total is {}", total.shape);
  ProfileScope profile(ctx.dry ? nullptr : ctx.profile, "add_losses", 2.0 * N, 8.0 * N);
  if (ctx.device == Device::cuda) return cuda::add_losses(ctx, losses, weights, total);
  if (ctx.dry) return;
  double sum = 0;
  for (int64_t n = 0; n < N; ++n) sum += double{weights[n]} * losses.f32()[n];
  *total.as<double>() += sum;
}

}  // namespace sft
