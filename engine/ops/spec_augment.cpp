#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/spec_augment.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include "engine/cpu/simd-inl.h"
#include "engine/ops/spec_augment.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

// y += weight x.
void add_row(const float* x, float weight, int64_t C, float* y) {
  for_vectors(C, [&](int64_t i, int64_t n) {
    store(hn::MulAdd(load(x + i, n), set(weight), load(y + i, n)), y + i, n);
  });
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/cpu/parallel.h"

namespace sft {
namespace {

HWY_EXPORT(add_row);

double cubic(double x) {
  constexpr double A = -0.75;
  x = std::abs(x);
  if (x <= 1) return ((A + 2) * x - (A + 3)) * x * x + 1;
  return x < 2 ? ((A * x - 5 * A) * x + 8 * A) * x - 4 * A : 0;
}

struct Mask {
  int32_t begin, end;
};

// What happens to one utterance of T frames.
struct Plan {
  const SpecAugment& options;
  int32_t* data;
  int64_t T, C;

  int32_t& centre() const { return data[0]; }  // frames [0, centre) become `moved`; T: no warp
  int32_t& moved() const { return data[1]; }
  std::span<Mask> freq() const {
    return {reinterpret_cast<Mask*>(data + 2), static_cast<size_t>(options.freq_masks)};
  }
  std::span<Mask> time() const {
    return {freq().data() + options.freq_masks, static_cast<size_t>(options.time_masks)};
  }
  bool hidden(int64_t t) const {
    return std::ranges::any_of(time(), [&](Mask m) { return t >= m.begin && t < m.end; });
  }
  void hide_columns(float* row) const {
    for (const Mask m : freq()) std::memset(row + m.begin, 0, (m.end - m.begin) * sizeof(float));
  }
  ResampleTaps taps(int64_t t) const {
    if (t < moved()) return resample_taps(t, moved(), centre());
    ResampleTaps taps = resample_taps(t - moved(), T - moved(), T - centre());
    for (int64_t& row : taps.rows) row += centre();
    return taps;
  }
};

void draw_masks(std::span<Mask> masks, int width, int64_t size, Draws& draws) {
  const auto n = static_cast<int32_t>(size);
  int32_t widest = 0;
  for (Mask& m : masks) {
    m.end = static_cast<int32_t>(draws.below(std::min(width, n)));
    widest = std::max(widest, m.end);
  }
  for (Mask& m : masks) {
    m.begin = static_cast<int32_t>(draws.below(std::max(1, n - widest)));
    m.end = std::min(n, m.begin + m.end);
  }
}

void draw(const Plan& plan, Draws draws) {
  const auto T = static_cast<int32_t>(plan.T);
  const int32_t window = plan.options.time_warp;
  plan.centre() = plan.moved() = T;
  if (window > 0 && T > 2 * window) {
    plan.centre() = window + static_cast<int32_t>(draws.below(T - 2 * window));
    plan.moved() = plan.centre() - window + 1 + static_cast<int32_t>(draws.below(2 * window));
  }
  draw_masks(plan.freq(), plan.options.freq_width, plan.C, draws);
  draw_masks(plan.time(), plan.options.time_width, T, draws);
}

// Without a warp three weights are zero.
template <class F>
void for_taps(const ResampleTaps& taps, F&& f) {
  for (int k = 0; k < 4; ++k)
    if (taps.weights[k] != 0) f(taps.rows[k], taps.weights[k]);
}

// f(plan, b) of every utterance, in parallel.
template <class F>
void for_utterances(Tensor plans, const SpecAugment& options, const Segments& segments, int64_t C,
                    F&& f) {
  cpu::parallel_for(segments.batch(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      int32_t* data = plans.as<int32_t>() + b * plans.row_stride;
      f(Plan{options, data, segments.length(b), C}, b);
    }
  });
}

void check(Tensor x, const SpecAugment& o, const Segments& segments) {
  CHECK(x.shape.rank() == 2 && x.shape[0] == segments.total(),
        "spec_augment: x is {}, the batch has {} frames", x.shape, segments.total());
  CHECK(o.time_warp >= 0 && o.freq_masks >= 0 && o.time_masks >= 0 && o.freq_width >= 1 &&
            o.time_width >= 1,
        "spec_augment: warp {}, {} masks below {}, {} masks below {}", o.time_warp, o.freq_masks,
        o.freq_width, o.time_masks, o.time_width);
}

}  // namespace

ResampleTaps resample_taps(int64_t t, int64_t n, int64_t m) {
  const double at = (t + 0.5) * m / n - 0.5, left = std::floor(at);
  ResampleTaps taps;
  for (int k = 0; k < 4; ++k) {
    taps.rows[k] = std::clamp<int64_t>(static_cast<int64_t>(left) + k - 1, 0, m - 1);
    taps.weights[k] = static_cast<float>(cubic(at - left - (k - 1)));
  }
  return taps;
}

SpecAugmentOut spec_augment_forward(Context& ctx, Tensor x, const SpecAugment& options,
                                    const Segments& segments) {
  check(x, options, segments);
  const int64_t B = segments.batch(), C = x.width();
  const SpecAugmentOut out{
      ctx.activation(x.shape),
      ctx.activation({B, 2 + 2 * (options.freq_masks + options.time_masks)}, Dtype::i32)};
  if (ctx.dry) return out;
  ProfileScope profile(ctx.profile, "spec_augment", 8.0 * x.count(), 8.0 * x.count());
  for_utterances(out.plan, options, segments, C, [&](const Plan& plan, int64_t b) {
    draw(plan, Draws(ctx.rng.seed, segments.utterances[b], ctx.rng.update, fnv1a("specaugment")));
    for (int64_t t = 0; t < plan.T; ++t) {
      float* y = out.y.row(segments.starts[b] + t);
      std::memset(y, 0, C * sizeof(float));
      if (plan.hidden(t)) continue;
      for_taps(plan.taps(t), [&](int64_t row, float weight) {
        HWY_DYNAMIC_DISPATCH(add_row)(x.row(segments.starts[b] + row), weight, C, y);
      });
      plan.hide_columns(y);
    }
  });
  return out;
}

void spec_augment_backward(Context& ctx, Tensor dy, Tensor plan, const SpecAugment& options,
                           const Segments& segments, Grad dx) {
  const int64_t B = segments.batch(), C = dy.width();
  ScratchScope scratch(ctx.scratch);
  const Tensor rows = ctx.temporary({B, C});
  if (ctx.dry || !dx) return;
  ProfileScope profile(ctx.profile, "spec_augment.backward", 8.0 * dy.count(), 8.0 * dy.count());
  for_utterances(plan, options, segments, C, [&](const Plan& plan, int64_t b) {
    float* kept = rows.row(b);
    for (int64_t t = 0; t < plan.T && !dx.add; ++t)
      std::memset(dx.to.row(segments.starts[b] + t), 0, C * sizeof(float));
    for (int64_t t = 0; t < plan.T; ++t) {
      if (plan.hidden(t)) continue;
      std::memcpy(kept, dy.row(segments.starts[b] + t), C * sizeof(float));
      plan.hide_columns(kept);
      for_taps(plan.taps(t), [&](int64_t row, float weight) {
        HWY_DYNAMIC_DISPATCH(add_row)(kept, weight, C, dx.to.row(segments.starts[b] + row));
      });
    }
  });
}

}  // namespace sft
#endif
