#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/cpu/rows.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include <algorithm>
#include <cstring>

#include "engine/cpu/dropout-inl.h"
#include "engine/cpu/rows.h"

#ifndef SFT_ROWS_COLUMNS
#define SFT_ROWS_COLUMNS
namespace sft::cpu {
constexpr int64_t kSumColumns = 128;  // that one thread sums in one go: eight lines of each row
}
#endif

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

void scale_row(const float* base, const float* x, const cpu::DropoutRow& factors, int64_t C,
               float* to) {
  for_dropped(factors, C, [&](int64_t i, int64_t n, Vec factor) {
    const Vec scaled = hn::Mul(load(x + i, n), factor);
    store(base ? hn::Add(load(base + i, n), scaled) : scaled, to + i, n);
  });
}

// sums (+)= the sums over rows of columns [first, first + count) of x: of 64 rows each, then
// theirs.
void sum_columns(Tensor x, int64_t first, int64_t count, float* sums, bool add) {
  constexpr int64_t kRows = 64, kAhead = 16;
  alignas(64) float part[cpu::kSumColumns];
  for (int64_t begin = 0; begin < x.rows(); begin += kRows) {
    std::memset(part, 0, sizeof(part));
    for (int64_t t = begin; t < std::min(x.rows(), begin + kRows); ++t) {
      const float* row = x.row(t) + first;
      for_vectors(count, [&](int64_t i, int64_t n) {
        __builtin_prefetch(row + kAhead * x.row_stride + i);
        store(hn::Add(load(part + i, n), load(row + i, n)), part + i, n);
      });
    }
    for_vectors(count, [&](int64_t i, int64_t n) {
      const Vec before = add || begin ? load(sums + first + i, n) : zero();
      store(hn::Add(before, load(part + i, n)), sums + first + i, n);
    });
  }
  if (!add && x.rows() == 0) std::memset(sums + first, 0, count * sizeof(float));
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
  parallel_for(x.width(), kSumColumns, [&](int64_t begin, int64_t end) {
    HWY_DYNAMIC_DISPATCH(sum_columns)(x, begin, end - begin, sums.to.f32(), sums.add);
  });
}

}  // namespace cpu
}  // namespace sft
#endif
