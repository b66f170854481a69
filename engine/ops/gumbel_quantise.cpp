#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/gumbel_quantise.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include "engine/cpu/softmax-inl.h"
#include "engine/ops/gumbel_quantise.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

// s: numbers of (0, 1); then x - ln(-ln s).
void add_gumbel(const float* x, int64_t n, float* s) {
  for_vectors(n, [&](int64_t i, int64_t m) {
    const Vec u = hn::IfThenElse(hn::FirstN(Lanes(), m), load(s + i, m), set(0.5f));
    store(hn::Sub(load(x + i, m), log(hn::Neg(log(u)))), s + i, m);
  });
}

void soften(float* s, int64_t V, float temperature) { softmax_row(s, V, temperature, s); }

void soft_gradient(const float* soft, const float* g, int64_t V, float factor, float* dx,
                   bool add) {
  softmax_gradient_row(soft, g, V, factor, dx, add);
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "engine/cpu/gemm.h"
#include "engine/cpu/parallel.h"

namespace sft {
namespace {

HWY_EXPORT(add_gumbel);
HWY_EXPORT(soften);
HWY_EXPORT(soft_gradient);

constexpr int64_t kRows = 16;

// Numbers of (0, 1) of row t of an utterance.
void draw(const Rng& rng, uint32_t utterance, int64_t t, uint32_t site, int64_t n, float* to) {
  const int64_t first = t * ((n + 3) / 4);
  for (int64_t c = 0; c < n; c += 4) {
    const auto call = static_cast<uint32_t>(first + c / 4);
    const PhiloxWords words = philox(rng.seed, call, utterance, rng.update, site);
    for (int64_t k = 0; k < std::min<int64_t>(4, n - c); ++k)
      to[c + k] = (static_cast<float>(words[static_cast<int>(k)] >> 9) + 0.5f) * 0x1p-23f;
  }
}

struct Row {
  int32_t utterance, t;
};

Row row_of(const Segments& segments, int64_t n) {
  const auto next = std::upper_bound(segments.starts.begin(), segments.starts.end(), n);
  const auto b = next - segments.starts.begin() - 1;
  return {segments.utterances[b], static_cast<int32_t>(n) - segments.starts[b]};
}

}  // namespace

GumbelOut gumbel_quantise_forward(Context& ctx, Tensor x, Tensor codebook, int groups,
                                  const GumbelNoise& noise, Segments segments) {
  const int64_t N = x.rows(), codes = codebook.rows(), d = codebook.width();
  CHECK(x.shape == (Shape{N, codes}) && groups > 0 && codes % groups == 0,
        "gumbel_quantise: x is {}, the codebook {} in {} groups", x.shape, codebook.shape, groups);
  CHECK(N == segments.total(), "gumbel_quantise: x is {}, {} rows in all", x.shape,
        segments.total());
  const int64_t V = codes / groups;
  const GumbelOut out{ctx.activation({N, groups * d}, x.dtype),
                      ctx.activation({N, groups}, Dtype::i32),
                      noise ? ctx.activation({N, codes}) : Tensor(), ctx.activation({1})};
  ProfileScope profile(ctx.profile, "gumbel_quantise", 40.0 * N * codes,
                       4.0 * (3 * N * codes + 2 * N * groups * d));
  if (ctx.device == Device::cuda)
    return cuda::gumbel_quantise_forward(ctx, x, codebook, groups, noise, segments, out), out;
  if (ctx.dry) return out;
  const auto temperature = static_cast<float>(noise.temperature(ctx.rng.update));
  *out.temperature.f32() = temperature;
  cpu::parallel_for(N, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const float* scores = x.row(n);
      if (noise) {
        const Row row = row_of(segments, n);
        draw(ctx.rng, row.utterance, row.t, noise.site, codes, out.soft.row(n));
        HWY_DYNAMIC_DISPATCH(add_gumbel)(scores, codes, out.soft.row(n));
        scores = out.soft.row(n);
      }
      for (int g = 0; g < groups; ++g) {
        const float* group = scores + g * V;
        const int64_t pick = std::max_element(group, group + V) - group;
        out.picks.as<int32_t>()[n * groups + g] = static_cast<int32_t>(pick);
        std::copy_n(codebook.row(g * V + pick), d, out.code.row(n) + g * d);
        if (noise) HWY_DYNAMIC_DISPATCH(soften)(out.soft.row(n) + g * V, V, temperature);
      }
    }
  });
  return out;
}

namespace {

// dcodebook (+)= rows of dcode, each where it was picked from; in the order of rows.
void add_picked(Tensor dcode, Tensor picks, int64_t groups, Grad dcodebook) {
  const int64_t d = dcodebook.to.width(), V = dcodebook.to.rows() / groups;
  if (!dcodebook.add) std::fill_n(dcodebook.to.f32(), dcodebook.to.count(), 0.0f);
  for (int64_t n = 0; n < dcode.rows(); ++n)
    for (int64_t g = 0; g < groups; ++g) {
      const float* from = dcode.row(n) + g * d;
      float* to = dcodebook.to.row(g * V + picks.as<int32_t>()[n * groups + g]);
      for (int64_t c = 0; c < d; ++c) to[c] += from[c];
    }
}

}  // namespace

void gumbel_quantise_backward(Context& ctx, Tensor dcode, Tensor codebook, int groups,
                              const GumbelOut& out, Grad dx, Grad dcodebook) {
  const int64_t N = dcode.rows(), codes = codebook.rows(), d = codebook.width();
  CHECK(out.soft, "gumbel_quantise: there is no way back without noise");
  CHECK(dcode.shape == out.code.shape, "gumbel_quantise: dcode is {}, the code {}", dcode.shape,
        out.code.shape);
  const int64_t V = codes / groups;
  ProfileScope profile(ctx.profile, "gumbel_quantise.backward", 2.0 * N * codes * d,
                       4.0 * (4 * N * codes + 2 * N * groups * d));
  if (ctx.device == Device::cuda)
    return cuda::gumbel_quantise_backward(ctx, dcode, codebook, groups, out, dx, dcodebook);
  ScratchScope scratch(ctx.scratch);
  const Tensor products = dx ? ctx.temporary({N, codes}) : Tensor();
  if (ctx.dry) return;
  if (dcodebook) add_picked(dcode, out.picks, groups, dcodebook);
  if (!dx || N == 0) return;
  for (int g = 0; g < groups; ++g)
    cpu::sgemm(false, true, N, V, d, dcode.f32() + g * d, dcode.row_stride, codebook.row(g * V),
               codebook.row_stride, 0, products.f32() + g * V, products.row_stride);
  cpu::parallel_for(N, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      for (int64_t v = 0; v < codes; v += V) HWY_DYNAMIC_DISPATCH(soft_gradient)
    (out.soft.row(n) + v, products.row(n) + v, V, 1 / *out.temperature.f32(), dx.to.row(n) + v,
     dx.add);
  });
}

}  // namespace sft
#endif
