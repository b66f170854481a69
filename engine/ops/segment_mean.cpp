#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/segment_mean.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include "engine/cpu/simd-inl.h"
#include "engine/ops/segment_mean.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

// y = sum of T rows, times scale.
void mean_rows(const float* x, int64_t stride, int64_t T, int64_t C, float scale, float* y) {
  constexpr int64_t kBlock = 64;  // frames whose sum is added as one number
  for_vectors(C, [&](int64_t i, int64_t n) {
    Vec total = zero();
    for (int64_t begin = 0; begin < T; begin += kBlock) {
      Vec block = zero();
      for (int64_t t = begin; t < HWY_MIN(begin + kBlock, T); ++t)
        block = hn::Add(block, load(x + t * stride + i, n));
      total = hn::Add(total, block);
    }
    store(hn::Mul(total, set(scale)), y + i, n);
  });
}

void spread_row(const float* dy, int64_t C, float scale, float* dx, bool add) {
  for_vectors(C, [&](int64_t i, int64_t n) {
    const Vec value = hn::Mul(load(dy + i, n), set(scale));
    store(add ? hn::Add(load(dx + i, n), value) : value, dx + i, n);
  });
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "engine/cpu/parallel.h"

namespace sft {
namespace {

HWY_EXPORT(mean_rows);
HWY_EXPORT(spread_row);

constexpr int64_t kColumns = 64;  // of one piece of work: an utterance may be the only one

float share(const Segments& segments, int b) {
  return segments.length(b) ? 1.0f / static_cast<float>(segments.length(b)) : 0.0f;
}

}  // namespace

Tensor segment_mean_forward(Context& ctx, Tensor x, const Segments& segments) {
  CHECK(x.shape.rank() == 2 && x.shape[0] == segments.total(),
        "segment_mean: x is {}, the batch has {} frames", x.shape, segments.total());
  const int64_t B = segments.batch(), C = x.width(), pieces = (C + kColumns - 1) / kColumns;
  const Tensor y = ctx.activation({B, C}, x.dtype);
  ProfileScope profile(ctx.profile, "segment_mean", 1.0 * x.count(), 4.0 * x.count());
  if (ctx.device == Device::cuda) return cuda::segment_mean_forward(ctx, x, segments, y), y;
  if (ctx.dry) return y;
  cpu::parallel_for(B * pieces, 1, [&](int64_t piece, int64_t end) {
    for (; piece < end; ++piece) {
      const int b = static_cast<int>(piece / pieces);
      const int64_t c = piece % pieces * kColumns;
      HWY_DYNAMIC_DISPATCH(mean_rows)
      (x.row(segments.starts[b]) + c, x.row_stride, segments.length(b), std::min(kColumns, C - c),
       share(segments, b), y.row(b) + c);
    }
  });
  return y;
}

void segment_mean_backward(Context& ctx, Tensor dy, const Segments& segments, Grad dx) {
  if (!dx) return;
  const int64_t C = dy.width();
  ProfileScope profile(ctx.profile, "segment_mean.backward", 1.0 * dx.to.count(),
                       (dx.add ? 8.0 : 4.0) * dx.to.count());
  if (ctx.device == Device::cuda) return cuda::segment_mean_backward(ctx, dy, segments, dx);
  if (ctx.dry) return;
  cpu::parallel_for(segments.batch(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      for (int64_t t = segments.starts[b]; t < segments.starts[b + 1]; ++t)
        HWY_DYNAMIC_DISPATCH(spread_row)(dy.row(b), C, share(segments, b), dx.to.row(t), dx.add);
  });
}

}  // namespace sft
#endif
