#include "engine/ops/dropout.h"

#include "engine/cpu/rows.h"

namespace sft {

Tensor dropout_forward(Context& ctx, Tensor x, Dropout dropout, const Segments& segments) {
  CHECK(x.shape.rank() == 2, "dropout: x is {}, expected [T, C]", x.shape);
  cpu::check_dropout("dropout", dropout, segments, x.rows());
  const Tensor y = ctx.activation(x.shape, x.dtype);
  const auto n = static_cast<double>(x.count());
  ProfileScope profile(ctx.profile, "dropout", n, 8 * n);
  if (ctx.device == Device::cuda) return cuda::dropout_forward(ctx, x, dropout, segments, y), y;
  if (ctx.dry) return y;
  cpu::scale_rows({}, x, cpu::DropoutRows(ctx.rng, dropout, segments, x.width()), y);
  return y;
}

void dropout_backward(Context& ctx, Tensor dy, Dropout dropout, const Segments& segments, Grad dx) {
  const auto n = static_cast<double>(dy.count());
  ProfileScope profile(ctx.profile, "dropout.backward", n, 8 * n);
  if (ctx.device == Device::cuda) return cuda::dropout_backward(ctx, dy, dropout, segments, dx);
  if (ctx.dry) return;
  cpu::scale_rows(dy, cpu::DropoutRows(ctx.rng, dropout, segments, dy.width()), dx);
}

void scale_grad_backward(Context& ctx, Tensor dy, float factor, Grad dx) {
  if (ctx.dry) return;
  const auto n = static_cast<double>(dy.count());
  ProfileScope profile(ctx.profile, "scale_grad.backward", n, 8 * n);
  if (ctx.device == Device::cuda) return cuda::scale_grad_backward(ctx, dy, factor, dx);
  cpu::scale_rows(dy, cpu::DropoutRows(factor), dx);
}

}  // namespace sft
