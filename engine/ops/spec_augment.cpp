#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/spec_augment.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include "engine/cpu/simd-inl.h"
#include "engine/ops/spec_augment_plan.h"

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
#include <cstring>

#include "engine/cpu/parallel.h"

namespace sft {
namespace {

HWY_EXPORT(add_row);

void hide_columns(const SpecPlan& plan, float* row) {
  for (int i = 0; i < plan.options.freq_masks; ++i) {
    const SpecMask m = plan.freq()[i];
    std::memset(row + m.begin, 0, (m.end - m.begin) * sizeof(float));
  }
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
      f(SpecPlan{options, data, segments.length(static_cast<int>(b)), static_cast<int32_t>(C)}, b);
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

SpecAugmentOut spec_augment_forward(Context& ctx, Tensor x, const SpecAugment& options,
                                    const Segments& segments) {
  check(x, options, segments);
  const int64_t B = segments.batch(), C = x.width();
  const SpecAugmentOut out{ctx.activation(x.shape, x.dtype),
                           ctx.activation({B, SpecPlan::width(options)}, Dtype::i32)};
  ProfileScope profile(ctx.profile, "spec_augment", 8.0 * x.count(), 8.0 * x.count());
  if (ctx.device == Device::cuda)
    return cuda::spec_augment_forward(ctx, x, options, segments, out), out;
  if (ctx.dry) return out;
  for_utterances(out.plan, options, segments, C, [&](const SpecPlan& plan, int64_t b) {
    plan.draw(Draws(ctx.rng.seed, segments.utterances[b], ctx.rng.update, fnv1a("specaugment")));
    for (int64_t t = 0; t < plan.T; ++t) {
      float* y = out.y.row(segments.starts[b] + t);
      std::memset(y, 0, C * sizeof(float));
      if (plan.hidden(t)) continue;
      for_taps(plan.taps(t), [&](int64_t row, float weight) {
        HWY_DYNAMIC_DISPATCH(add_row)(x.row(segments.starts[b] + row), weight, C, y);
      });
      hide_columns(plan, y);
    }
  });
  return out;
}

void spec_augment_backward(Context& ctx, Tensor dy, Tensor plan, const SpecAugment& options,
                           const Segments& segments, Grad dx) {
  if (!dx) return;
  const int64_t B = segments.batch(), C = dy.width();
  ProfileScope profile(ctx.profile, "spec_augment.backward", 8.0 * dy.count(), 8.0 * dy.count());
  if (ctx.device == Device::cuda)
    return cuda::spec_augment_backward(ctx, dy, plan, options, segments, dx);
  ScratchScope scratch(ctx.scratch);
  const Tensor rows = ctx.temporary({B, C});
  if (ctx.dry) return;
  for_utterances(plan, options, segments, C, [&](const SpecPlan& plan, int64_t b) {
    float* kept = rows.row(b);
    for (int64_t t = 0; t < plan.T && !dx.add; ++t)
      std::memset(dx.to.row(segments.starts[b] + t), 0, C * sizeof(float));
    for (int64_t t = 0; t < plan.T; ++t) {
      if (plan.hidden(t)) continue;
      std::memcpy(kept, dy.row(segments.starts[b] + t), C * sizeof(float));
      hide_columns(plan, kept);
      for_taps(plan.taps(t), [&](int64_t row, float weight) {
        HWY_DYNAMIC_DISPATCH(add_row)(kept, weight, C, dx.to.row(segments.starts[b] + row));
      });
    }
  });
}

}  // namespace sft
#endif
