#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/adam.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include "engine/cpu/simd-inl.h"
#include "engine/ops/adam_scalars.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

void adam_range(float* p, const float* g, float* m, float* v, int64_t count, const AdamScalars& s) {
  constexpr int64_t kAhead = 640;  // numbers fetched before their turn
  for_vectors(count, [&](int64_t i, int64_t n) {
    for (const float* from : {static_cast<const float*>(p), g, static_cast<const float*>(m),
                              static_cast<const float*>(v)})
      __builtin_prefetch(from + i + kAhead);
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

}  // namespace

void adam(Context& ctx, const AdamRange& range, const AdamRule& rule, Tensor norm, Tensor loss) {
  const auto& [p, g, m, v, steps, copy] = range;
  CHECK(g.shape == p.shape && m.shape == p.shape && v.shape == p.shape,
        "adam: p is {}, g {}, m {}, v {}", p.shape, g.shape, m.shape, v.shape);
  CHECK(p.dense() && g.dense() && m.dense() && v.dense(), "adam: buffers must be dense");
  CHECK(!copy || (copy.shape == p.shape && copy.dtype == Dtype::bf16 && copy.dense() &&
                  ctx.device == Device::cuda),
        "adam: copy is {} {}, p {}", copy.dtype, copy.shape, p.shape);
  CHECK(steps.count() == 1 && norm.count() == 1 && loss.count() == 1,
        "adam: steps is {}, norm {}, loss {}", steps.shape, norm.shape, loss.shape);
  const int64_t n = p.count();
  ProfileScope profile(ctx.dry ? nullptr : ctx.profile, "adam", 14.0 * n, (copy ? 30.0 : 28.0) * n);
  if (ctx.device == Device::cuda) return cuda::adam(ctx, range, rule, norm, loss);
  if (ctx.dry) return;
  int64_t& done = *steps.as<int64_t>();
  const AdamScalars s = adam_scalars(rule, *norm.as<double>(), *loss.as<double>(), done + 1);
  if (!s.applied) return;
  ++done;
  float *const weights = p.f32(), *const grads = g.f32(), *const m1 = m.f32(), *const m2 = v.f32();
  cpu::parallel_for(n, kGrain, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(adam_range)
    (weights + begin, grads + begin, m1 + begin, m2 + begin, end - begin, s);
  });
}

}  // namespace sft
#endif
