#include "engine/ops/transpose.h"

#include <algorithm>

#include "engine/cpu/parallel.h"

namespace sft {

Tensor transpose(Context& ctx, Tensor w) {
  CHECK(w.shape.rank() == 2 && w.dense() && w.dtype == Dtype::f32, "transpose: w is {} {}", w.shape,
        w.dtype);
  const int64_t K = w.shape[0], N = w.shape[1];
  const Tensor out = ctx.temporary({N, K});
  if (ctx.dry) return out;
  ProfileScope profile(ctx.profile, "transpose", 0, 8.0 * w.count());
  if (ctx.device == Device::cuda) return cuda::transpose(ctx, w, out), out;
  cpu::parallel_for(N, 16, [&](int64_t begin, int64_t end) {  // a cache line of each row of w
    for (int64_t k = 0; k < K; ++k)
      for (int64_t n = begin; n < end; ++n) out.row(n)[k] = w.row(k)[n];
  });
  return out;
}

}  // namespace sft
