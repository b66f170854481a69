#include "engine/ops/linear.h"

#include "engine/cpu/gemm.h"
#include "engine/cpu/rows.h"

namespace sft {

Tensor linear_forward(Context& ctx, Tensor x, Tensor weight, Tensor bias,
                      const LinearEpilogue& epilogue) {
  const int64_t T = x.rows(), K = x.width(), N = weight.shape.rank() ? weight.shape[0] : 0;
  const Tensor residual = epilogue.residual;
  CHECK(x.shape.rank() == 2 && weight.shape == (Shape{N, K}), "linear: weight is {}, x {}",
        weight.shape, x.shape);
  CHECK(!bias || bias.shape == Shape{N}, "linear: bias is {}, weight {}", bias.shape, weight.shape);
  CHECK(!residual || residual.shape == (Shape{T, N}), "linear: residual is {}, expected {}",
        residual.shape, Shape{T, N});
  cpu::check_dropout("linear", epilogue.dropout, epilogue.segments, T);
  CHECK(!residual || residual.dtype == x.dtype, "linear: residual is {}, x {}", residual.dtype,
        x.dtype);
  const Tensor y = ctx.activation({T, N}, x.dtype);
  ProfileScope profile(ctx.profile, "linear", 2.0 * T * N * K,
                       4.0 * (T * (K + N * (residual ? 2 : 1)) + N * K));
  if (ctx.device == Device::cuda) return cuda::linear_forward(ctx, x, weight, bias, epilogue, y), y;
  ScratchScope scratch(ctx.scratch);
  const cpu::PackedWeight packed = cpu::pack_weight(ctx, weight);
  if (ctx.dry) return y;
  const cpu::DropoutRows rows(ctx.rng, epilogue.dropout, epilogue.segments, N);
  cpu::matmul(x, packed, y, {.bias = bias, .residual = rows ? Tensor() : residual});
  if (rows) cpu::scale_rows(residual, y, rows, y);
  return y;
}

void linear_backward(Context& ctx, Tensor dy, Tensor x, Tensor weight,
                     const LinearEpilogue& epilogue, Grad dresidual, Grad dx, Grad dweight,
                     Grad dbias) {
  const int64_t T = dy.rows(), K = x.width(), N = dy.width();
  const bool inner = dx || dweight || dbias;
  ProfileScope profile(ctx.profile, "linear.backward", 2.0 * T * N * K * (!!dx + !!dweight),
                       4.0 * (T * (K + N) + N * K) * (!!dx + !!dweight));
  if (ctx.device == Device::cuda)
    return cuda::linear_backward(ctx, dy, x, weight, epilogue, dresidual, dx, dweight, dbias);
  ScratchScope scratch(ctx.scratch);
  const cpu::DropoutRows rows(ctx.rng, epilogue.dropout, epilogue.segments, N);
  const Tensor product = rows && inner ? ctx.temporary({T, N}) : dy;
  const cpu::BackwardWeight packed = cpu::pack_backward(ctx, weight, T, !!dx, !!dweight);
  if (ctx.dry) return;
  cpu::scale_rows(dy, cpu::DropoutRows(), dresidual);
  if (rows && inner) cpu::scale_rows(dy, rows, {product, false});
  cpu::matmul_dx(product, packed, dx);
  cpu::matmul_dweight(product, x, packed, dweight, dbias);
}

}  // namespace sft
