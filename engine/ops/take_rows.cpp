#include "engine/ops/take_rows.h"

#include <algorithm>
#include <cstring>

#include "engine/cpu/parallel.h"
#include "engine/cpu/rows.h"

namespace sft {
namespace {

constexpr int64_t kRows = 32;  // of a parallel chunk

void check_rows(const char* op, std::span<const int32_t> rows, int64_t T) {
  for (const int32_t row : rows)
    CHECK(row >= 0 && row < T, "{}: row {} of a matrix of {} rows", op, row, T);
}

void add_row(const float* x, int64_t C, float* to) {
  for (int64_t c = 0; c < C; ++c) to[c] += x[c];
}

void zero_rows(Tensor matrix) {
  for (int64_t t = 0; t < matrix.rows(); ++t)
    std::memset(matrix.row(t), 0, matrix.width() * sizeof(float));
}

}  // namespace

Tensor take_rows_forward(Context& ctx, Tensor x, std::span<const int32_t> rows) {
  CHECK(x.shape.rank() == 2, "take_rows: x is {}, expected [T, C]", x.shape);
  check_rows("take_rows", rows, x.rows());
  const int64_t R = static_cast<int64_t>(rows.size()), C = x.width();
  const Tensor y = ctx.activation({R, C}, x.dtype);
  ProfileScope profile(ctx.profile, "take_rows", 0, 8.0 * R * C);
  if (ctx.device == Device::cuda) return cuda::take_rows_forward(ctx, x, rows, y), y;
  if (ctx.dry) return y;
  cpu::parallel_for(R, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) std::memcpy(y.row(r), x.row(rows[r]), C * sizeof(float));
  });
  return y;
}

void take_rows_backward(Context& ctx, Tensor dy, std::span<const int32_t> rows, Grad dx) {
  if (!dx) return;
  const int64_t R = dy.rows(), C = dy.width();
  ProfileScope profile(ctx.profile, "take_rows.backward", 0, 4.0 * (R + dx.to.rows()) * C);
  if (ctx.device == Device::cuda) return cuda::take_rows_backward(ctx, dy, rows, dx);
  if (ctx.dry) return;
  if (!dx.add) zero_rows(dx.to);
  cpu::parallel_for(R, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) add_row(dy.row(r), C, dx.to.row(rows[r]));
  });
}

Tensor mask_spans_forward(Context& ctx, Tensor x, Tensor mask_emb, std::span<const int32_t> rows) {
  const int64_t T = x.rows(), C = x.width();
  CHECK(x.shape.rank() == 2 && mask_emb.shape == Shape{C}, "mask_spans: x is {}, mask_emb {}",
        x.shape, mask_emb.shape);
  check_rows("mask_spans", rows, T);
  CHECK(std::is_sorted(rows.begin(), rows.end()), "mask_spans: rows do not ascend");
  const Tensor y = ctx.activation(x.shape, x.dtype);
  ProfileScope profile(ctx.profile, "mask_spans", 0, 8.0 * T * C);
  if (ctx.device == Device::cuda) return cuda::mask_spans_forward(ctx, x, mask_emb, rows, y), y;
  if (ctx.dry) return y;
  cpu::scale_rows({}, x, cpu::DropoutRows(), y);
  for (const int32_t row : rows) std::memcpy(y.row(row), mask_emb.data, C * sizeof(float));
  return y;
}

void mask_spans_backward(Context& ctx, Tensor dy, std::span<const int32_t> rows, Grad dx,
                         Grad dmask_emb) {
  const int64_t T = dy.rows(), C = dy.width();
  ProfileScope profile(ctx.profile, "mask_spans.backward", 0, 8.0 * T * C);
  if (ctx.device == Device::cuda) return cuda::mask_spans_backward(ctx, dy, rows, dx, dmask_emb);
  if (ctx.dry) return;
  if (dx)
    cpu::parallel_for(T, kRows, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t) {
        const bool masked = std::binary_search(rows.begin(), rows.end(), static_cast<int32_t>(t));
        if (masked && !dx.add) std::memset(dx.to.row(t), 0, C * sizeof(float));
        if (masked) continue;
        if (dx.add)
          add_row(dy.row(t), C, dx.to.row(t));
        else
          std::memcpy(dx.to.row(t), dy.row(t), C * sizeof(float));
      }
    });
  if (!dmask_emb) return;
  float* sum = dmask_emb.to.f32();
  if (!dmask_emb.add) std::memset(sum, 0, C * sizeof(float));
  for (const int32_t row : rows) add_row(dy.row(row), C, sum);
}

}  // namespace sft
