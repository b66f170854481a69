#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/layer_norm.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include "engine/cpu/norm-inl.h"
#include "engine/cpu/simd-inl.h"
#include "engine/ops/layer_norm.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

// One row; weight null: no affine part.
void norm_row(const float* x, const float* weight, const float* bias, int64_t C, float eps,
              float* y, float* mean, float* rstd) {
  const Moments m = moments(x, C, eps);
  *mean = m.mean, *rstd = m.rstd;
  for_vectors(C, [&](int64_t i, int64_t n) {
    const Vec normed = hn::Mul(hn::Sub(load(x + i, n), set(m.mean)), set(m.rstd));
    store(weight ? hn::MulAdd(normed, load(weight + i, n), load(bias + i, n)) : normed, y + i, n);
  });
}

void norm_row_dx(const float* dy, const float* x, const float* weight, int64_t C, float mean,
                 float rstd, float* dx, bool add) {
  norm_dx(dy, x, weight, C, {mean, rstd}, dx, add);
}

void norm_row_dw(const float* dy, const float* x, int64_t C, float mean, float rstd, float* dweight,
                 float* dbias) {
  norm_dw(dy, x, C, {mean, rstd}, dweight, dbias);
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <cstring>

#include "engine/cpu/parallel.h"

namespace sft {
namespace {

HWY_EXPORT(norm_row);
HWY_EXPORT(norm_row_dx);
HWY_EXPORT(norm_row_dw);

constexpr int64_t kRows = 64;  // of a chunk; partial sums of weight gradients are per chunk

// partial [chunks, 2C] -> dweight, dbias, chunk by chunk.
void sum_partials(const float* partial, int64_t chunks, int64_t C, Grad dweight, Grad dbias) {
  const auto reduce = [&](Grad to, int64_t offset) {
    if (!to) return;
    float* out = to.to.f32();
    if (!to.add) std::memset(out, 0, C * sizeof(float));
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      for (int64_t c = 0; c < C; ++c) out[c] += partial[chunk * 2 * C + offset + c];
  };
  reduce(dweight, 0);
  reduce(dbias, C);
}

}  // namespace

LayerNormOut layer_norm_forward(Context& ctx, Tensor x, Tensor weight, Tensor bias, float eps) {
  const int64_t T = x.rows(), C = x.width();
  CHECK(!weight == !bias, "layer_norm: weight and bias come together");
  CHECK(!weight || (weight.shape == Shape{C} && bias.shape == Shape{C}),
        "layer_norm: weight is {}, bias {}, x {}", weight.shape, bias.shape, x.shape);
  CHECK(ctx.device == Device::cpu || C <= 2048, "layer_norm: {} channels, at most 2048", C);
  LayerNormOut out{ctx.activation(x.shape, x.dtype), ctx.activation({T}), ctx.activation({T})};
  if (ctx.dry) return out;
  ProfileScope profile(ctx.profile, "layer_norm", 8.0 * T * C, 8.0 * T * C);
  if (ctx.device == Device::cuda)
    return cuda::layer_norm_forward(ctx, x, weight, bias, eps, out), out;
  const float* w = weight ? weight.f32() : nullptr;
  const float* b = weight ? bias.f32() : nullptr;
  cpu::parallel_for(T, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) HWY_DYNAMIC_DISPATCH(norm_row)
    (x.row(t), w, b, C, eps, out.y.row(t), out.mean.f32() + t, out.rstd.f32() + t);
  });
  return out;
}

void layer_norm_backward(Context& ctx, Tensor dy, Tensor x, Tensor weight, Tensor mean, Tensor rstd,
                         Grad dx, Grad dweight, Grad dbias) {
  const int64_t T = x.rows(), C = x.width(), chunks = (T + kRows - 1) / kRows;
  ProfileScope profile(ctx.profile, "layer_norm.backward", 14.0 * T * C, 12.0 * T * C);
  if (ctx.device == Device::cuda)
    return cuda::layer_norm_backward(ctx, dy, x, weight, mean, rstd, dx, dweight, dbias);
  ScratchScope scratch(ctx.scratch);
  const bool sums = dweight || dbias;
  float* partial = sums ? ctx.temporary({chunks * 2 * C}).f32() : nullptr;
  if (ctx.dry) return;
  const float* w = weight ? weight.f32() : nullptr;
  cpu::parallel_for(T, kRows, [&](int64_t begin, int64_t end) {
    float* mine = sums ? partial + begin / kRows * 2 * C : nullptr;
    if (sums) std::memset(mine, 0, 2 * C * sizeof(float));
    for (int64_t t = begin; t < end; ++t) {
      const float m = mean.f32()[t], r = rstd.f32()[t];
      if (dx)
        HWY_DYNAMIC_DISPATCH(norm_row_dx)(dy.row(t), x.row(t), w, C, m, r, dx.to.row(t), dx.add);
      if (sums) HWY_DYNAMIC_DISPATCH(norm_row_dw)(dy.row(t), x.row(t), C, m, r, mine, mine + C);
    }
  });
  if (sums) sum_partials(partial, chunks, C, dweight, dbias);
}

}  // namespace sft
#endif
