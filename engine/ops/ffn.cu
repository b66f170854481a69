// ffn.cu: y = residual + drop(W2 drop_act(gelu(W1 x + b1)) + b2).
//
// Layout   x, y, dy, residual [T, C], pre [T, F] f32 or bf16; weights, biases, their gradients f32
// Work     two products forward, four back (gemm.h), over all rows at once. Between them one pass
//          each: act = gelu(pre) * mask; back from pre and d act: act again, dpre in place of d
//          act, and the partial sums of the bias' gradient (stripes.cuh: a lane owns 8 columns)
// Cost     bf16, T = 4375, C = 768, F = 3072: 20.6 GFLOP a product; the pass forward 53.8 MB, 12.5
// us
//          at 4.3 TB/s; the pass back 107.5 MB, 25 us: memory-bound. GELU and its slope are about
//          25 instructions an element, a mask 9: with a mask the pass forward issues for about as
//          long as it moves
// Numbers  f32 in between; pre, act and dpre are rounded to bf16 once each, whether pre is kept or
//          not; sums in a fixed order; no atomics
#include "engine/ops/ffn.h"

#include "engine/cuda/gelu.cuh"
#include "engine/cuda/gemm.h"
#include "engine/cuda/rows.cuh"

namespace sft::cuda {
namespace {

template <class T>
struct Activation {
  Matrix<T> pre, act, dact;  // [T, F]; dact becomes dpre
  DropoutRows factors;
  float* partial;
  int64_t rows;
  int F;
};

// act = gelu(pre) * factors; act may be pre.
template <class T>
__global__ void __launch_bounds__(kStripeThreads, 4) ffn_activate_kernel(Activation<T> p) {
  const int c = stripe_column();
  const int64_t step = stripe_row_step();
  for (int64_t first = stripe_first_row(); first < p.rows && c < p.F; first += kStripeRows * step) {
    Float8 x[kStripeRows];
#pragma unroll
    for (int r = 0; r < kStripeRows; ++r)
      if (first + r * step < p.rows)
        x[r] = load_row(p.pre.row(first + r * step), c, p.F, p.pre.whole);
#pragma unroll
    for (int r = 0; r < kStripeRows; ++r) {
      const int64_t row = first + r * step;
      if (row >= p.rows) break;
      const Float8 factors = p.factors.factors(p.factors.at(row), c);
#pragma unroll
      for (int k = 0; k < 8; ++k) x[r].v[k] = gelu(x[r].v[k]) * factors.v[k];
      store_row(p.act.row(row), c, p.F, p.act.whole, x[r]);
    }
  }
}

// act as above if it is there; dpre = dact * factors * gelu'(pre), in place; sums of dpre.
template <class T>
__global__ void __launch_bounds__(kStripeThreads, 4) ffn_activate_back_kernel(Activation<T> p) {
  const int c = stripe_column();
  Float8 sums{};
  for (int64_t row = stripe_first_row(); row < p.rows && c < p.F; row += stripe_row_step()) {
    Float8 x = load_row(p.pre.row(row), c, p.F, p.pre.whole);
    Float8 d = load_row(p.dact.row(row), c, p.F, p.dact.whole);
    const Float8 factors = p.factors.factors(p.factors.at(row), c);
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      const Gelu g = gelu_and_slope(x.v[k]);
      x.v[k] = g.value * factors.v[k];
      d.v[k] *= g.slope * factors.v[k];
      sums.v[k] += d.v[k];
    }
    if (p.act.data) store_row(p.act.row(row), c, p.F, p.act.whole, x);
    store_row(p.dact.row(row), c, p.F, p.dact.whole, d);
  }
  if (p.partial) write_column_sums(sums, p.partial, p.F);
}

template <class T>
Activation<T> activation(Tensor pre, Tensor act, Tensor dact, const DropoutRows& factors,
                         float* partial) {
  return {matrix<T>(pre),
          matrix<T>(act),
          matrix<T>(dact),
          factors,
          partial,
          pre.rows(),
          static_cast<int>(pre.width())};
}

void activate(Context& ctx, Tensor pre, const DropoutRows& factors, Tensor act) {
  with_element(pre.dtype, [&]<class T>() {
    launch(ffn_activate_kernel<T>, stripe_grid(pre.rows(), pre.width(), false),
           dim3(kStripeThreads), 0, ctx.gpu->stream(),
           activation<T>(pre, act, {}, factors, nullptr));
  });
}

void activate_back(Context& ctx, Tensor pre, const DropoutRows& factors, Tensor act, Tensor dact,
                   const ColumnSums& sums) {
  const bool summing = sums.partial;
  with_element(pre.dtype, [&]<class T>() {
    launch(ffn_activate_back_kernel<T>, stripe_grid(pre.rows(), pre.width(), summing),
           dim3(kStripeThreads), summing ? sizeof(StripeShared) : 0, ctx.gpu->stream(),
           activation<T>(pre, act, dact, factors, sums.partial));
  });
}

FfnWeights weights_as(Context& ctx, const FfnWeights& w, Dtype dtype) {
  return {weight_as(ctx, w.up_weight, dtype), weight_as(ctx, w.up_bias, dtype),
          weight_as(ctx, w.down_weight, dtype), weight_as(ctx, w.down_bias, dtype)};
}

}  // namespace

void ffn_forward(Context& ctx, Tensor x, const FfnWeights& weights, const FfnEpilogue& epilogue,
                 const FfnOut& out) {
  const int64_t T = x.rows(), C = x.width(), F = weights.up_bias.count();
  ScratchScope scratch(ctx.scratch);
  const Tensor act = ctx.temporary({T, F}, x.dtype), pre = out.pre ? out.pre : act;
  const FfnWeights w = weights_as(ctx, weights, x.dtype);
  const DropoutRows inside = dropout_rows(ctx, epilogue.activation_dropout, epilogue.segments, F);
  const DropoutRows outside = dropout_rows(ctx, epilogue.dropout, epilogue.segments, C);
  if (ctx.dry) return;
  matmul(ctx, x, w.up_weight, pre, {.bias = w.up_bias});
  activate(ctx, pre, inside, act);
  matmul(ctx, act, w.down_weight, out.y,
         {.bias = w.down_bias, .residual = outside ? Tensor() : epilogue.residual});
  if (outside) scale_rows(ctx, epilogue.residual, out.y, outside, out.y);
}

void ffn_backward(Context& ctx, Tensor dy, Tensor x, const FfnWeights& weights,
                  const FfnEpilogue& epilogue, Tensor pre, const FfnGrads& grads) {
  const int64_t T = x.rows(), C = x.width(), F = weights.up_bias.count();
  ScratchScope scratch(ctx.scratch);
  const Tensor act = grads.down_weight ? ctx.temporary({T, F}, x.dtype) : Tensor();
  const Tensor dpre = ctx.temporary({T, F}, x.dtype);
  const Tensor up = weight_as(ctx, weights.up_weight, x.dtype);
  const Tensor down = weight_as(ctx, weights.down_weight, x.dtype);
  const DropoutRows inside = dropout_rows(ctx, epilogue.activation_dropout, epilogue.segments, F);
  const DropoutRows outside = dropout_rows(ctx, epilogue.dropout, epilogue.segments, C);
  const Tensor dropped = outside ? ctx.temporary({T, C}, x.dtype) : Tensor();
  const ColumnSums up_sums = column_sums(ctx, T, F, static_cast<bool>(grads.up_bias));
  const ColumnSums down_sums = column_sums(ctx, T, C, static_cast<bool>(grads.down_bias));
  if (ctx.dry) return;
  spread_rows(ctx, dy, outside, grads.residual, dropped, down_sums);
  const Tensor product = outside ? dropped : dy;  // d(W2 act + b2)
  matmul_dx(ctx, product, down, {dpre, false});
  activate_back(ctx, pre, inside, act, dpre, up_sums);
  matmul_dx(ctx, dpre, up, grads.x);
  matmul_dweight(ctx, dpre, x, grads.up_weight);
  add_up(ctx, up_sums, grads.up_bias);
  matmul_dweight(ctx, product, act, grads.down_weight);
  add_up(ctx, down_sums, grads.down_bias);
}

}  // namespace sft::cuda
