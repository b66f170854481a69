#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/contrastive_logits.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include "engine/cpu/cosine-inl.h"
#include "engine/ops/contrastive_logits.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

float scale_of(const float* x, int64_t D) { return inverse_norm_of(x, D); }

float product_of(const float* a, const float* b, int64_t D) { return row_product(a, b, D); }

// to += factor x
void add_multiple(const float* x, float factor, int64_t D, float* to) {
  for_vectors(D, [&](int64_t i, int64_t n) {
    store(hn::MulAdd(set(factor), load(x + i, n), load(to + i, n)), to + i, n);
  });
}

void take_off_along(const float* g, const float* x, float scale, int64_t D, float* dx, bool add) {
  project_row_off(g, x, scale, D, dx, add);
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <limits>

#include "engine/cpu/parallel.h"

namespace sft {
namespace {

HWY_EXPORT(scale_of);
HWY_EXPORT(product_of);
HWY_EXPORT(add_multiple);
HWY_EXPORT(take_off_along);

constexpr int64_t kRows = 8;
constexpr float kExcluded = -std::numeric_limits<float>::infinity();

template <class F>
void for_rows(int64_t N, F&& f) {
  cpu::parallel_for(N, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) f(n);
  });
}

void scales_of(Tensor x, float* scales) {
  for_rows(x.rows(),
           [&](int64_t n) { scales[n] = HWY_DYNAMIC_DISPATCH(scale_of)(x.row(n), x.width()); });
}

bool same_code(Tensor picks, int64_t a, int64_t b) {
  const int64_t G = picks.width();
  const int32_t* all = picks.as<int32_t>();
  return std::equal(all + a * G, all + (a + 1) * G, all + b * G);
}

void check(const Negatives& negatives, int64_t N) {
  CHECK(static_cast<int64_t>(negatives.rows.size()) == N * negatives.each &&
            negatives.uses.size() == negatives.rows.size() &&
            static_cast<int64_t>(negatives.starts.size()) == N + 1,
        "contrastive_logits: {} negatives, expected {} for each of {} rows", negatives.rows.size(),
        negatives.each, N);
}

}  // namespace

void NegativeList::assign(int64_t N, int64_t each, std::span<const int32_t> rows) {
  each_ = each;
  rows_.assign(rows.begin(), rows.end());
  starts_.assign(N + 1, 0);
  uses_.resize(rows.size());
  for (int32_t row : rows) ++starts_[row + 1];
  for (int64_t n = 0; n < N; ++n) starts_[n + 1] += starts_[n];
  std::vector<int32_t> next(starts_.begin(), starts_.end() - 1);
  for (size_t i = 0; i < rows.size(); ++i) uses_[next[rows[i]]++] = static_cast<int32_t>(i);
}

ContrastiveOut contrastive_logits_forward(Context& ctx, Tensor y, Tensor q, Tensor picks,
                                          const Negatives& negatives, float temperature) {
  const int64_t N = y.rows(), D = y.width(), K = negatives.each;
  CHECK(q.shape == y.shape && picks.rows() == N, "contrastive_logits: y is {}, q {}, picks {}",
        y.shape, q.shape, picks.shape);
  CHECK(temperature > 0, "contrastive_logits: temperature is {}", temperature);
  check(negatives, N);
  const ContrastiveOut out{ctx.activation({N, 1 + K}), ctx.activation({N}), ctx.activation({N})};
  ProfileScope profile(ctx.profile, "contrastive_logits", 2.0 * N * (1 + K) * D,
                       4.0 * (N * (1 + K) + 2 * N * D));
  if (ctx.device == Device::cuda)
    return cuda::contrastive_logits_forward(ctx, y, q, picks, negatives, temperature, out), out;
  if (ctx.dry) return out;
  scales_of(y, out.y_scale.f32());
  scales_of(q, out.q_scale.f32());
  for_rows(N, [&](int64_t n) {
    const float scale = out.y_scale.f32()[n] / temperature;
    const auto logit = [&](int64_t r) {
      return HWY_DYNAMIC_DISPATCH(product_of)(y.row(n), q.row(r), D) * scale * out.q_scale.f32()[r];
    };
    float* logits = out.logits.row(n);
    logits[0] = logit(n);
    for (int64_t k = 0; k < K; ++k) {
      const int64_t r = negatives.rows[n * K + k];
      logits[1 + k] = same_code(picks, n, r) ? kExcluded : logit(r);
    }
  });
  return out;
}

namespace {

// What a logit passes on to the plain product y_n q_r.
struct Factors {
  Tensor dlogits;
  const ContrastiveOut& out;
  float temperature;

  float operator()(int64_t n, int64_t column, int64_t r) const {
    if (out.logits.row(n)[column] == kExcluded) return 0;
    return dlogits.row(n)[column] * out.y_scale.f32()[n] * out.q_scale.f32()[r] / temperature;
  }
};

void project(Tensor g, Tensor x, const float* scales, Grad dx) {
  for_rows(x.rows(), [&](int64_t n) {
    HWY_DYNAMIC_DISPATCH(take_off_along)
    (g.row(n), x.row(n), scales[n], x.width(), dx.to.row(n), dx.add);
  });
}

void add_row(Tensor from, int64_t r, float factor, float* to) {
  HWY_DYNAMIC_DISPATCH(add_multiple)(from.row(r), factor, from.width(), to);
}

}  // namespace

void contrastive_logits_backward(Context& ctx, Tensor dlogits, Tensor y, Tensor q,
                                 const Negatives& negatives, const ContrastiveOut& out,
                                 float temperature, Grad dy, Grad dq) {
  const int64_t N = y.rows(), D = y.width(), K = negatives.each;
  CHECK(dlogits.shape == out.logits.shape, "contrastive_logits: dlogits is {}, logits {}",
        dlogits.shape, out.logits.shape);
  check(negatives, N);
  ProfileScope profile(ctx.profile, "contrastive_logits.backward", 4.0 * N * (1 + K) * D,
                       4.0 * (2 * N * (1 + K) + 6 * N * D));
  if (ctx.device == Device::cuda)
    return cuda::contrastive_logits_backward(ctx, dlogits, y, q, negatives, out, temperature, dy,
                                             dq);
  ScratchScope scratch(ctx.scratch);
  const Tensor by_y = dy ? ctx.temporary({N, D}) : Tensor();
  const Tensor by_q = dq ? ctx.temporary({N, D}) : Tensor();
  if (ctx.dry) return;
  const Factors factor{dlogits, out, temperature};
  if (dy) {
    for_rows(N, [&](int64_t n) {
      std::fill_n(by_y.row(n), D, 0.0f);
      add_row(q, n, factor(n, 0, n), by_y.row(n));
      for (int64_t k = 0; k < K; ++k) {
        const int64_t r = negatives.rows[n * K + k];
        add_row(q, r, factor(n, 1 + k, r), by_y.row(n));
      }
    });
    project(by_y, y, out.y_scale.f32(), dy);
  }
  if (dq) {
    for_rows(N, [&](int64_t r) {
      std::fill_n(by_q.row(r), D, 0.0f);
      add_row(y, r, factor(r, 0, r), by_q.row(r));
      for (int32_t i = negatives.starts[r]; i < negatives.starts[r + 1]; ++i) {
        const int64_t n = negatives.uses[i] / K, k = negatives.uses[i] % K;
        add_row(y, n, factor(n, 1 + k, r), by_q.row(r));
      }
    });
    project(by_q, q, out.q_scale.f32(), dq);
  }
}

}  // namespace sft
#endif
