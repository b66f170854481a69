#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/cosine_logits.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include "engine/cpu/cosine-inl.h"
#include "engine/ops/cosine_logits.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {
namespace {

float inverse_norm(const float* x, int64_t D) { return inverse_norm_of(x, D); }

// to = factor * scales * from
void scale_row(const float* from, const float* scales, float factor, int64_t V, float* to) {
  for_vectors(V, [&](int64_t i, int64_t n) {
    store(hn::Mul(hn::Mul(load(from + i, n), set(factor)), load(scales + i, n)), to + i, n);
  });
}

void project_row(const float* g, const float* x, float scale, int64_t D, float* dx, bool add) {
  project_row_off(g, x, scale, D, dx, add);
}

}  // namespace
}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "engine/cpu/gemm.h"
#include "engine/cpu/parallel.h"

namespace sft {
namespace {

HWY_EXPORT(inverse_norm);
HWY_EXPORT(scale_row);
HWY_EXPORT(project_row);

constexpr int64_t kRows = 32;

void inverse_norms(Tensor x, float* scales) {
  cpu::parallel_for(x.rows(), kRows, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      scales[n] = HWY_DYNAMIC_DISPATCH(inverse_norm)(x.row(n), x.width());
  });
}

// to_nv = from_nv rows_n columns_v / temperature
void scale(Tensor from, const float* rows, const float* columns, float temperature, Tensor to) {
  cpu::parallel_for(from.rows(), kRows, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) HWY_DYNAMIC_DISPATCH(scale_row)
    (from.row(n), columns, rows[n] / temperature, from.width(), to.row(n));
  });
}

void project(Tensor g, Tensor x, const float* scales, Grad dx) {
  cpu::parallel_for(x.rows(), kRows, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) HWY_DYNAMIC_DISPATCH(project_row)
    (g.row(n), x.row(n), scales[n], x.width(), dx.to.row(n), dx.add);
  });
}

}  // namespace

CosineLogitsOut cosine_logits_forward(Context& ctx, Tensor x, Tensor embedding, float temperature) {
  const int64_t N = x.rows(), V = embedding.rows(), D = x.width();
  CHECK(embedding.shape == (Shape{V, D}), "cosine_logits: embedding is {}, x {}", embedding.shape,
        x.shape);
  CHECK(temperature > 0, "cosine_logits: temperature is {}", temperature);
  const CosineLogitsOut out{ctx.activation({N, V}), ctx.activation({N}), ctx.activation({V})};
  ProfileScope profile(ctx.profile, "cosine_logits", 2.0 * N * V * D, 4.0 * (N * V + (N + V) * D));
  if (ctx.device == Device::cuda)
    return cuda::cosine_logits_forward(ctx, x, embedding, temperature, out), out;
  ScratchScope scratch(ctx.scratch);
  const cpu::PackedWeight packed = cpu::pack_weight(ctx, embedding, Math::exact);
  if (ctx.dry) return out;
  inverse_norms(x, out.x_scale.f32());
  inverse_norms(embedding, out.e_scale.f32());
  cpu::matmul(x, packed, out.logits);
  scale(out.logits, out.x_scale.f32(), out.e_scale.f32(), temperature, out.logits);
  return out;
}

void cosine_logits_backward(Context& ctx, Tensor dlogits, Tensor x, Tensor embedding,
                            const CosineLogitsOut& out, float temperature, Grad dx,
                            Grad dembedding) {
  const int64_t N = x.rows(), V = embedding.rows(), D = x.width();
  CHECK(dlogits.shape == out.logits.shape, "cosine_logits: dlogits is {}, logits {}", dlogits.shape,
        out.logits.shape);
  ProfileScope profile(ctx.profile, "cosine_logits.backward", 4.0 * N * V * D,
                       8.0 * (N * V + (N + V) * D));
  if (ctx.device == Device::cuda)
    return cuda::cosine_logits_backward(ctx, dlogits, x, embedding, out, temperature, dx,
                                        dembedding);
  ScratchScope scratch(ctx.scratch);
  const Tensor g = ctx.temporary({N, V});  // by the plain products x_n e_v
  const Tensor by_x = dx ? ctx.temporary({N, D}) : Tensor();
  const Tensor by_e = dembedding ? ctx.temporary({V, D}) : Tensor();
  const cpu::BackwardWeight packed =
      cpu::pack_backward(ctx, embedding, N, !!dx, !!dembedding, Math::exact);
  if (ctx.dry) return;
  scale(dlogits, out.x_scale.f32(), out.e_scale.f32(), temperature, g);
  if (dx) {
    cpu::matmul_dx(g, packed, {by_x});
    project(by_x, x, out.x_scale.f32(), dx);
  }
  if (dembedding) {
    cpu::matmul_dweight(g, x, packed, {by_e});
    project(by_e, embedding, out.e_scale.f32(), dembedding);
  }
}

}  // namespace sft
#endif
