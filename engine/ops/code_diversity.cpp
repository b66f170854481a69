#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/code_diversity.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include "engine/cpu/softmax-inl.h"
#include "engine/ops/code_diversity.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

void probabilities(const float* x, int64_t V, float* p) { softmax_row(x, V, 1, p); }

void probability_gradient(const float* p, const float* dp, int64_t V, float factor, float* dx,
                          bool add) {
  softmax_gradient_row(p, dp, V, factor, dx, add);
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <cmath>

#include "engine/cpu/parallel.h"

namespace sft {
namespace {

HWY_EXPORT(probabilities);
HWY_EXPORT(probability_gradient);

constexpr int64_t kRows = 32, kColumns = 64;
constexpr double kLeast = 1e-7;

void mean_rows(Tensor x, float* mean) {
  const auto N = static_cast<double>(x.rows());
  cpu::parallel_for(x.width(), kColumns, [&](int64_t begin, int64_t end) {
    double sums[kColumns] = {};
    for (int64_t n = 0; n < x.rows(); ++n)
      for (int64_t v = begin; v < end; ++v) sums[v - begin] += x.row(n)[v];
    for (int64_t v = begin; v < end; ++v) mean[v] = static_cast<float>(sums[v - begin] / N);
  });
}

double perplexity(const float* p, int64_t V) {
  double entropy = 0;
  for (int64_t v = 0; v < V; ++v) entropy -= static_cast<double>(p[v]) * std::log(p[v] + kLeast);
  return std::exp(entropy);
}

}  // namespace

CodeDiversityOut code_diversity_forward(Context& ctx, Tensor x, int groups) {
  const int64_t N = x.rows(), codes = x.width(), V = codes / groups;
  CHECK(groups > 0 && codes % groups == 0, "code_diversity: x is {}, {} groups", x.shape, groups);
  const CodeDiversityOut out{ctx.activation({1}), ctx.activation({1}), ctx.activation({codes}),
                             ctx.activation({N, codes})};
  ProfileScope profile(ctx.profile, "code_diversity", 20.0 * N * codes, 12.0 * N * codes);
  if (ctx.device == Device::cuda) return cuda::code_diversity_forward(ctx, x, groups, out), out;
  if (ctx.dry) return out;
  *out.loss.f32() = *out.perplexity.f32() = 0;
  std::fill_n(out.mean.f32(), codes, 0.0f);
  if (N == 0) return out;
  cpu::parallel_for(N, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      for (int64_t v = 0; v < codes; v += V)
        HWY_DYNAMIC_DISPATCH(probabilities)(x.row(n) + v, V, out.soft.row(n) + v);
  });
  mean_rows(out.soft, out.mean.f32());
  double total = 0;
  for (int64_t v = 0; v < codes; v += V) total += perplexity(out.mean.f32() + v, V);
  const auto all = static_cast<double>(codes);
  *out.perplexity.f32() = static_cast<float>(total);
  *out.loss.f32() = static_cast<float>((all - total) / all);
  return out;
}

void code_diversity_backward(Context& ctx, int groups, std::span<const float> weight,
                             const CodeDiversityOut& out, Grad dx) {
  if (!dx) return;
  const int64_t N = out.soft.rows(), codes = out.soft.width(), V = codes / groups;
  CHECK(weight.size() == 1, "code_diversity: {} weights, expected 1", weight.size());
  ProfileScope profile(ctx.profile, "code_diversity.backward", 6.0 * N * codes, 8.0 * N * codes);
  if (ctx.device == Device::cuda)
    return cuda::code_diversity_backward(ctx, groups, weight, out, dx);
  ScratchScope scratch(ctx.scratch);
  float* dmean = ctx.temporary({codes}).f32();
  if (ctx.dry || N == 0) return;
  const float* p = out.mean.f32();
  for (int64_t first = 0; first < codes; first += V) {
    const double share = perplexity(p + first, V) / static_cast<double>(codes);
    for (int64_t v = first; v < first + V; ++v)
      dmean[v] = static_cast<float>(share * (std::log(p[v] + kLeast) + p[v] / (p[v] + kLeast)));
  }
  const float factor = weight[0] / static_cast<float>(N);
  cpu::parallel_for(N, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      for (int64_t v = 0; v < codes; v += V) HWY_DYNAMIC_DISPATCH(probability_gradient)
    (out.soft.row(n) + v, dmean + v, V, factor, dx.to.row(n) + v, dx.add);
  });
}

}  // namespace sft
#endif
