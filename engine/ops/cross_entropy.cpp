#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/cross_entropy.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include <cmath>

#include "engine/cpu/vector_math-inl.h"
#include "engine/ops/cross_entropy.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

float row_lse(const float* x, int64_t V) {
  Vec most = set(-INFINITY);
  for_vectors(V, [&](int64_t i, int64_t n) {
    most = hn::Max(most, hn::IfThenElse(hn::FirstN(Lanes(), n), load(x + i, n), set(-INFINITY)));
  });
  const float top = hn::GetLane(hn::MaxOfLanes(Lanes(), most));
  Vec total = zero();
  for_vectors(V, [&](int64_t i, int64_t n) {
    const Vec e = exp(hn::Sub(load(x + i, n), set(top)));
    total = hn::Add(total, hn::IfThenElseZero(hn::FirstN(Lanes(), n), e));
  });
  return top + std::log(sum(total));
}

// dx (+)= weight softmax(x), and - weight at the label.
void row_gradient(const float* x, int64_t V, float lse, int32_t label, float weight, float* dx,
                  bool add) {
  for_vectors(V, [&](int64_t i, int64_t n) {
    const Vec p = hn::Mul(set(weight), exp(hn::Sub(load(x + i, n), set(lse))));
    store(add ? hn::Add(load(dx + i, n), p) : p, dx + i, n);
  });
  dx[label] -= weight;
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "engine/cpu/parallel.h"

namespace sft {
namespace {

HWY_EXPORT(row_lse);
HWY_EXPORT(row_gradient);

constexpr int64_t kRows = 16;

}  // namespace

CrossEntropyOut cross_entropy_forward(Context& ctx, Tensor logits,
                                      std::span<const int32_t> labels) {
  const int64_t N = logits.rows(), V = logits.width();
  CHECK(static_cast<int64_t>(labels.size()) == N, "cross_entropy: {} labels, logits are {}",
        labels.size(), logits.shape);
  for (int64_t n = 0; n < N; ++n)
    if (labels[n] < 0 || labels[n] >= V)
      fail(Kind::input, "cross_entropy: the label of row {} is {} (expected 0 to {})", n, labels[n],
           V - 1);
  const CrossEntropyOut out{ctx.activation({N}), ctx.activation({N})};
  ProfileScope profile(ctx.profile, "cross_entropy", 16.0 * N * V, 4.0 * N * V);
  if (ctx.device == Device::cuda) return cuda::cross_entropy_forward(ctx, logits, labels, out), out;
  if (ctx.dry) return out;
  float *const losses = out.losses.f32(), *const lse = out.lse.f32();
  cpu::parallel_for(N, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      lse[n] = HWY_DYNAMIC_DISPATCH(row_lse)(logits.row(n), V);
      losses[n] = lse[n] - logits.row(n)[labels[n]];
    }
  });
  return out;
}

void cross_entropy_backward(Context& ctx, Tensor logits, std::span<const int32_t> labels,
                            std::span<const float> weights, Tensor lse, Grad dlogits) {
  const int64_t N = logits.rows(), V = logits.width();
  CHECK(static_cast<int64_t>(weights.size()) == N, "cross_entropy: {} weights, logits are {}",
        weights.size(), logits.shape);
  if (!dlogits) return;
  ProfileScope profile(ctx.profile, "cross_entropy.backward", 16.0 * N * V, 8.0 * N * V);
  if (ctx.device == Device::cuda)
    return cuda::cross_entropy_backward(ctx, logits, labels, weights, lse, dlogits);
  if (ctx.dry) return;
  cpu::parallel_for(N, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      HWY_DYNAMIC_DISPATCH(row_gradient)
      (logits.row(n), V, lse.f32()[n], labels[n], weights[n], dlogits.to.row(n), dlogits.add);
    }
  });
}

}  // namespace sft
#endif
