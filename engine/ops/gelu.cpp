#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/gelu.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include "engine/cpu/vector_math-inl.h"
#include "engine/ops/gelu.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

// residual may be null.
void gelu_row(const float* x, const float* residual, int64_t n, float* y) {
  for_vectors(n, [&](int64_t i, int64_t m) {
    const Vec v = gelu(load(x + i, m));
    store(residual ? hn::Add(load(residual + i, m), v) : v, y + i, m);
  });
}

// dx = or += dy slope(x).
void gelu_row_dx(const float* dy, const float* x, int64_t n, bool add, float* dx) {
  for_vectors(n, [&](int64_t i, int64_t m) {
    const Vec v = hn::Mul(load(dy + i, m), gelu_slope(load(x + i, m)));
    store(add ? hn::Add(load(dx + i, m), v) : v, dx + i, m);
  });
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "engine/cpu/parallel.h"
#include "engine/cpu/rows.h"

namespace sft {
namespace {

HWY_EXPORT(gelu_row);
HWY_EXPORT(gelu_row_dx);

constexpr int64_t kRows = 64;  // of a chunk

}  // namespace

Tensor gelu_forward(Context& ctx, Tensor x, Tensor residual) {
  CHECK(x.shape.rank() == 2 && (!residual || residual.shape == x.shape),
        "gelu: x is {}, residual {}", x.shape, residual.shape);
  const Tensor y = ctx.activation(x.shape, x.dtype);
  if (ctx.dry) return y;
  const auto n = static_cast<double>(x.count());
  ProfileScope profile(ctx.profile, "gelu", 20 * n, (residual ? 12 : 8) * n);
  if (ctx.device == Device::cuda) return cuda::gelu_forward(ctx, x, residual, y), y;
  cpu::parallel_for(x.rows(), kRows, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) HWY_DYNAMIC_DISPATCH(gelu_row)
    (x.row(t), residual ? residual.row(t) : nullptr, x.width(), y.row(t));
  });
  return y;
}

void gelu_backward(Context& ctx, Tensor dy, Tensor x, Grad dresidual, Grad dx) {
  if (ctx.dry) return;
  const auto n = static_cast<double>(x.count());
  ProfileScope profile(ctx.profile, "gelu.backward", 20 * n, (dresidual ? 20 : 12) * n);
  if (ctx.device == Device::cuda) return cuda::gelu_backward(ctx, dy, x, dresidual, dx);
  if (dresidual) cpu::scale_rows(dy, cpu::DropoutRows(1), dresidual);
  if (!dx) return;
  cpu::parallel_for(x.rows(), kRows, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) HWY_DYNAMIC_DISPATCH(gelu_row_dx)
    (dy.row(t), x.row(t), x.width(), dx.add, dx.to.row(t));
  });
}

}  // namespace sft
#endif
