#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/cpu/rows.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include "engine/cpu/dropout-inl.h"
#include "engine/cpu/rows.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

void scale_row(const float* base, const float* x, const cpu::DropoutRow& factors, int64_t C,
               float* to) {
  for_dropped(factors, C, [&](int64_t i, int64_t n, Vec factor) {
    const Vec scaled = hn::Mul(load(x + i, n), factor);
    store(base ? hn::Add(load(base + i, n), scaled) : scaled, to + i, n);
  });
}

// Columns [0, count) of x, summed over rows: 64 at a time, then their sums.
void sum_columns(Tensor x, int64_t first, int64_t count, float* sums, bool add) {
  constexpr int64_t kRows = 64;
  const float* data = x.row(0) + first;
  for_vectors(count, [&](int64_t i, int64_t n) {
    Vec total = add ? load(sums + first + i, n) : zero();
    for (int64_t begin = 0; begin < x.rows(); begin += kRows) {
      Vec part = zero();
      for (int64_t t = begin; t < std::min(x.rows(), begin + kRows); ++t)
        part = hn::Add(part, load(data + t * x.row_stride + i, n));
      total = hn::Add(total, part);
    }
    store(total, sums + first + i, n);
  });
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "engine/cpu/parallel.h"

namespace sft {

HWY_EXPORT(scale_row);
HWY_EXPORT(sum_columns);

namespace cpu {

void scale_rows(Tensor base, Tensor x, const DropoutRows& factors, Tensor to) {
  parallel_for(to.rows(), 16, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) HWY_DYNAMIC_DISPATCH(scale_row)
    (base ? base.row(t) : nullptr, x.row(t), factors.at(t), to.width(), to.row(t));
  });
}

void sum_rows(Tensor x, Grad sums) {
  if (!sums) return;
  parallel_for(x.width(), 64, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(sum_columns)(x, begin, end - begin, sums.to.f32(), sums.add);
  });
}

}  // namespace cpu
}  // namespace sft
#endif
