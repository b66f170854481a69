#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/grad_norm.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include "engine/cpu/simd-inl.h"
#include "engine/ops/grad_norm.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

double square_sum(const float* x, int64_t count) {
  constexpr int64_t kAhead = 1024;  // numbers fetched before their turn
  const hn::ScalableTag<double> d;
  const hn::Rebind<float, decltype(d)> half;
  const auto step = static_cast<int64_t>(hn::Lanes(d));
  auto even = hn::Zero(d), odd = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * step <= count; i += 2 * step) {
    __builtin_prefetch(x + i + kAhead);
    const auto a = hn::PromoteTo(d, hn::LoadU(half, x + i));
    const auto b = hn::PromoteTo(d, hn::LoadU(half, x + i + step));
    even = hn::MulAdd(a, a, even);
    odd = hn::MulAdd(b, b, odd);
  }
  double total = hn::GetLane(hn::SumOfLanes(d, hn::Add(even, odd)));
  for (; i < count; ++i) total += double{x[i]} * x[i];
  return total;
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <cmath>

#include "engine/cpu/parallel.h"

namespace sft {
namespace {

HWY_EXPORT(square_sum);

constexpr int64_t kChunk = 1 << 15;  // elements of one partial sum

}  // namespace

void grad_norm(Context& ctx, std::span<const Tensor> ranges, Tensor norm) {
  CHECK(norm.count() == 1, "grad_norm: norm is {}", norm.shape);
  int64_t most = 0, elements = 0;
  for (const Tensor& range : ranges) {
    CHECK(range.dense(), "grad_norm: a range must be dense, got {}", range.shape);
    most = std::max(most, (range.count() + kChunk - 1) / kChunk);
    elements += range.count();
  }
  ProfileScope profile(ctx.dry ? nullptr : ctx.profile, "grad_norm", 2.0 * elements,
                       4.0 * elements);
  if (ctx.device == Device::cuda) return cuda::grad_norm(ctx, ranges, norm);
  ScratchScope scratch(ctx.scratch);
  auto* partial =
      static_cast<double*>(ctx.scratch.take(most * static_cast<int64_t>(sizeof(double))));
  if (ctx.dry) return;
  double total = 0;
  for (const Tensor& range : ranges) {
    const float* x = range.f32();
    cpu::parallel_for(range.count(), kChunk, [&](int64_t begin, int64_t end) {
      partial[begin / kChunk] = HWY_DYNAMIC_DISPATCH(square_sum)(x + begin, end - begin);
    });
    for (int64_t i = 0; i < (range.count() + kChunk - 1) / kChunk; ++i) total += partial[i];
  }
  *norm.as<double>() = std::sqrt(total);
}

}  // namespace sft
#endif
