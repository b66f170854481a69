#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/adam.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include "engine/cpu/simd-inl.h"
#include "engine/ops/adam.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

void adam_range(float* p, const float* g, float* m, float* v, int64_t count, const AdamScalars& s) {
  for_vectors(count, [&](int64_t i, int64_t n) {
    const Vec weight = load(p + i, n);
    const Vec grad = hn::MulAdd(set(s.clip), load(g + i, n), hn::Mul(set(s.decay), weight));
    const Vec mean =
        hn::MulAdd(set(s.beta1), load(m + i, n), hn::Mul(set(s.one_minus_beta1), grad));
    const Vec square = hn::MulAdd(set(s.beta2), load(v + i, n),
                                  hn::Mul(hn::Mul(set(s.one_minus_beta2), grad), grad));
    const Vec root = hn::MulAdd(set(s.root_scale), hn::Sqrt(square), set(s.eps));
    store(mean, m + i, n);
    store(square, v + i, n);
    store(hn::NegMulAdd(set(s.rate), hn::Div(mean, root), hn::Mul(set(s.shrink), weight)), p + i,
          n);
  });
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "engine/cpu/parallel.h"

namespace sft {
namespace {

HWY_EXPORT(adam_range);

constexpr int64_t kGrain = 1 << 16;

AdamScalars scalars(const AdamStep& s) {
  const auto step = static_cast<double>(s.step);
  const double bias1 = 1 - std::pow(double{s.beta1}, step);
  const double bias2 = 1 - std::pow(double{s.beta2}, step);
  return {.clip = s.clip_factor,
          .decay = s.decoupled ? 0 : s.weight_decay,
          .shrink = s.decoupled ? static_cast<float>(1 - double{s.lr} * s.weight_decay) : 1,
          .beta1 = s.beta1,
          .one_minus_beta1 = static_cast<float>(1 - double{s.beta1}),
          .beta2 = s.beta2,
          .one_minus_beta2 = static_cast<float>(1 - double{s.beta2}),
          .rate = static_cast<float>(s.lr / bias1),
          .root_scale = static_cast<float>(1 / std::sqrt(bias2)),
          .eps = s.eps};
}

}  // namespace

void adam(Context& ctx, Tensor p, Tensor g, Tensor m, Tensor v, const AdamStep& step) {
  CHECK(g.shape == p.shape && m.shape == p.shape && v.shape == p.shape,
        "adam: p is {}, g {}, m {}, v {}", p.shape, g.shape, m.shape, v.shape);
  CHECK(p.dense() && g.dense() && m.dense() && v.dense(), "adam: buffers must be dense");
  CHECK(step.step >= 1, "adam: step is {}, the first one is 1", step.step);
  const int64_t n = p.count();
  ProfileScope profile(ctx.profile, "adam", 14.0 * n, 28.0 * n);
  const AdamScalars s = scalars(step);
  if (ctx.device == Device::cuda) return cuda::adam(ctx, p, g, m, v, s);
  if (ctx.dry) return;
  float *const weights = p.f32(), *const grads = g.f32(), *const m1 = m.f32(), *const m2 = v.f32();
  cpu::parallel_for(n, kGrain, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(adam_range)
    (weights + begin, grads + begin, m1 + begin, m2 + begin, end - begin, s);
  });
}

}  // namespace sft
#endif
