#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/feature_penalty.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include "engine/cpu/simd-inl.h"
#include "engine/ops/feature_penalty.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {
namespace {

float row_square(const float* x, int64_t C) {
  Vec total = zero();
  for_vectors(
      C, [&](int64_t i, int64_t n) { total = hn::MulAdd(load(x + i, n), load(x + i, n), total); });
  return sum(total);
}

void row_multiple(const float* x, float factor, int64_t C, float* dx, bool add) {
  for_vectors(C, [&](int64_t i, int64_t n) {
    const Vec value = hn::Mul(set(factor), load(x + i, n));
    store(add ? hn::Add(load(dx + i, n), value) : value, dx + i, n);
  });
}

}  // namespace
}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "engine/cpu/parallel.h"

namespace sft {
namespace {

HWY_EXPORT(row_square);
HWY_EXPORT(row_multiple);

constexpr int64_t kRows = 64;

void check(Tensor x, Segments segments) {
  CHECK(x.rows() == segments.total(), "feature_penalty: x is {}, {} frames in all", x.shape,
        segments.total());
}

}  // namespace

Tensor feature_penalty_forward(Context& ctx, Tensor x, Segments segments) {
  check(x, segments);
  const int64_t T = x.rows(), C = x.width(), B = segments.batch();
  const Tensor losses = ctx.activation({B});
  ProfileScope profile(ctx.profile, "feature_penalty", 2.0 * T * C, 4.0 * T * C);
  if (ctx.device == Device::cuda)
    return cuda::feature_penalty_forward(ctx, x, segments, losses), losses;
  ScratchScope scratch(ctx.scratch);
  float* squares = ctx.temporary({T}).f32();
  if (ctx.dry) return losses;
  cpu::parallel_for(T, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      squares[t] = HWY_DYNAMIC_DISPATCH(row_square)(x.row(t), C);
  });
  for (int32_t b = 0; b < B; ++b) {
    double total = 0;
    for (int64_t t = segments.starts[b]; t < segments.starts[b + 1]; ++t) total += squares[t];
    losses.f32()[b] = static_cast<float>(total / static_cast<double>(segments.length(b) * C));
  }
  return losses;
}

void feature_penalty_backward(Context& ctx, Tensor x, Segments segments,
                              std::span<const float> weights, Grad dx) {
  if (!dx) return;
  const int64_t T = x.rows(), C = x.width(), B = segments.batch();
  CHECK(static_cast<int64_t>(weights.size()) == B, "feature_penalty: {} weights, {} utterances",
        weights.size(), B);
  ProfileScope profile(ctx.profile, "feature_penalty.backward", T * C, 8.0 * T * C);
  if (ctx.device == Device::cuda)
    return cuda::feature_penalty_backward(ctx, x, segments, weights, dx);
  ScratchScope scratch(ctx.scratch);
  float* factors = ctx.temporary({T}).f32();
  if (ctx.dry) return;
  for (int32_t b = 0; b < B; ++b)
    std::fill(factors + segments.starts[b], factors + segments.starts[b + 1],
              2 * weights[b] / static_cast<float>(segments.length(b) * C));
  cpu::parallel_for(T, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      HWY_DYNAMIC_DISPATCH(row_multiple)(x.row(t), factors[t], C, dx.to.row(t), dx.add);
  });
}

}  // namespace sft
#endif
