#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/ffn.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include "engine/cpu/dropout-inl.h"
#include "engine/cpu/vector_math-inl.h"
#include "engine/ops/ffn.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

// act = gelu(pre) * factors; act may be pre.
void activate_row(const float* pre, const cpu::DropoutRow& factors, int64_t F, float* act) {
  for_dropped(factors, F, [&](int64_t i, int64_t n, Vec factor) {
    store(hn::Mul(gelu(load(pre + i, n)), factor), act + i, n);
  });
}

// From pre and d act (in dpre): act as above, dpre = d act * factors * gelu'(pre), sums += dpre.
void activate_row_back(const float* pre, const cpu::DropoutRow& factors, int64_t F, float* act,
                       float* dpre, float* sums) {
  for_dropped(factors, F, [&](int64_t i, int64_t n, Vec factor) {
    const Vec x = load(pre + i, n);
    const auto g = gelu_parts(x);
    store(hn::Mul(gelu_of(x, g), factor), act + i, n);
    const Vec d = hn::Mul(hn::Mul(load(dpre + i, n), factor), gelu_slope_of(x, g));
    store(d, dpre + i, n);
    store(hn::Add(load(sums + i, n), d), sums + i, n);
  });
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <cstring>

#include "engine/cpu/gemm.h"
#include "engine/cpu/parallel.h"
#include "engine/cpu/rows.h"

namespace sft {
namespace {

HWY_EXPORT(activate_row);
HWY_EXPORT(activate_row_back);

// Most rows of a block: what is between the two layers stays in the L3 cache. Forward in whole
// chunks of a product for two threads.
constexpr int64_t kForwardRows = 1008, kForwardStep = 252, kBackwardStep = 16;
constexpr int64_t kBackwardRows = 1024;  // dweight is read and written once per block
constexpr int64_t kRowsAtOnce = 16;      // what one thread activates in one go

// Equal blocks of at most `most` rows, in multiples of `step`, but no more than T needs.
int64_t block_rows(int64_t T, int64_t most, int64_t step) {
  const int64_t blocks = std::max<int64_t>(1, (T + most - 1) / most);
  const int64_t rows = ((T + blocks - 1) / blocks + step - 1) / step * step;
  return std::max<int64_t>(16, std::min(rows, bucket_rows(T)));
}

// f(first, count) for the blocks of T rows; one empty block if there are none, whose sums are zero.
template <class F>
void for_blocks(int64_t T, int64_t rows, F&& f) {
  for (int64_t first = 0; first == 0 || first < T; first += rows)
    f(first, std::min(rows, T - first));
}

void activate(Tensor pre, const cpu::DropoutRows& rows, Tensor act) {
  cpu::parallel_for(pre.rows(), kRowsAtOnce, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      HWY_DYNAMIC_DISPATCH(activate_row)(pre.row(t), rows.at(t), pre.width(), act.row(t));
  });
}

int64_t row_groups(int64_t rows) { return (rows + kRowsAtOnce - 1) / kRowsAtOnce; }

// sums [row_groups(T), F]: of dpre, over the rows of each group, while they are near.
void activate_back(Tensor pre, const cpu::DropoutRows& rows, Tensor act, Tensor dpre, Tensor sums) {
  const int64_t F = pre.width();
  cpu::parallel_for(pre.rows(), kRowsAtOnce, [&](int64_t begin, int64_t end) {
    float* group = sums.row(begin / kRowsAtOnce);
    std::memset(group, 0, F * sizeof(float));
    for (int64_t t = begin; t < end; ++t) HWY_DYNAMIC_DISPATCH(activate_row_back)
    (pre.row(t), rows.at(t), F, act.row(t), dpre.row(t), group);
  });
}

void check(Tensor x, const FfnWeights& w, const FfnEpilogue& e) {
  const int64_t T = x.rows(), C = x.width(), F = w.up_bias.count();
  CHECK(x.shape.rank() == 2 && w.up_weight.shape == (Shape{F, C}) &&
            w.down_weight.shape == (Shape{C, F}) && w.down_bias.shape == Shape{C},
        "ffn: x is {}, weights {}, {}, {} and {}", x.shape, w.up_weight.shape, w.up_bias.shape,
        w.down_weight.shape, w.down_bias.shape);
  CHECK(!e.residual || (e.residual.shape == x.shape && e.residual.dtype == x.dtype),
        "ffn: residual is {} {}, x {} {}", e.residual.dtype, e.residual.shape, x.dtype, x.shape);
  cpu::check_dropout("ffn", e.activation_dropout, e.segments, T);
  cpu::check_dropout("ffn", e.dropout, e.segments, T);
}

Tensor rows_of(Tensor matrix, int64_t first, int64_t count) {
  return matrix ? matrix.slice(first, count) : Tensor();
}

Grad rows_of(Grad grad, int64_t first, int64_t count) {
  return {rows_of(grad.to, first, count), grad.add};
}

// A gradient that sums over blocks of rows.
Grad block_sum(Grad grad, int64_t first) { return {grad.to, grad.add || first > 0}; }

}  // namespace

FfnOut ffn_forward(Context& ctx, Tensor x, const FfnWeights& weights, const FfnEpilogue& epilogue,
                   bool keep) {
  check(x, weights, epilogue);
  const int64_t T = x.rows(), C = x.width(), F = weights.up_bias.count();
  const FfnOut out{ctx.activation({T, C}, x.dtype),
                   keep ? ctx.activation({T, F}, x.dtype) : Tensor()};
  ProfileScope profile(ctx.profile, "ffn", 4.0 * T * C * F,
                       4.0 * (T * (2 * C + (keep ? F : 0)) + 2 * C * F));
  if (ctx.device == Device::cuda) return cuda::ffn_forward(ctx, x, weights, epilogue, out), out;
  ScratchScope scratch(ctx.scratch);
  const int64_t block = block_rows(T, kForwardRows, kForwardStep);
  const Tensor acts = ctx.temporary({block, F});
  const cpu::PackedWeight up = cpu::pack_weight(ctx, weights.up_weight);
  const cpu::PackedWeight down = cpu::pack_weight(ctx, weights.down_weight);
  if (ctx.dry) return out;
  const cpu::DropoutRows inside(ctx.rng, epilogue.activation_dropout, epilogue.segments, F);
  const cpu::DropoutRows outside(ctx.rng, epilogue.dropout, epilogue.segments, C);
  for_blocks(T, block, [&](int64_t first, int64_t n) {
    const Tensor act = acts.slice(0, n), pre = keep ? out.pre.slice(first, n) : act;
    const Tensor y = out.y.slice(first, n), residual = rows_of(epilogue.residual, first, n);
    if (inside) {  // factors stand between
      cpu::matmul(x.slice(first, n), up, pre, {.bias = weights.up_bias});
      activate(pre, inside.from(first), act);
    } else {
      cpu::matmul(x.slice(first, n), up, act,
                  {.bias = weights.up_bias, .gelu = true, .pre = keep ? pre : Tensor()});
    }
    cpu::matmul(act, down, y,
                {.bias = weights.down_bias, .residual = outside ? Tensor() : residual});
    if (outside) cpu::scale_rows(residual, y, outside.from(first), y);
  });
  return out;
}

void ffn_backward(Context& ctx, Tensor dy, Tensor x, const FfnWeights& weights,
                  const FfnEpilogue& epilogue, Tensor pre, const FfnGrads& grads) {
  const int64_t T = x.rows(), C = x.width(), F = weights.up_bias.count();
  ProfileScope profile(ctx.profile, "ffn.backward", 8.0 * T * C * F,
                       4.0 * (T * (3 * C + F) + 4 * C * F));
  if (ctx.device == Device::cuda)
    return cuda::ffn_backward(ctx, dy, x, weights, epilogue, pre, grads);
  const int64_t block = block_rows(T, kBackwardRows, kBackwardStep);
  ScratchScope scratch(ctx.scratch);
  const cpu::DropoutRows inside(ctx.rng, epilogue.activation_dropout, epilogue.segments, F);
  const cpu::DropoutRows outside(ctx.rng, epilogue.dropout, epilogue.segments, C);
  const Tensor acts = ctx.temporary({block, F}), dpres = ctx.temporary({block, F});
  const Tensor group_sums = ctx.temporary({row_groups(block), F});
  const Tensor products = outside ? ctx.temporary({block, C}) : Tensor();
  const cpu::BackwardWeight up =
      cpu::pack_backward(ctx, weights.up_weight, block, !!grads.x, !!grads.up_weight);
  const cpu::BackwardWeight down =
      cpu::pack_backward(ctx, weights.down_weight, block, true, !!grads.down_weight);
  if (ctx.dry) return;
  cpu::scale_rows(dy, cpu::DropoutRows(), grads.residual);
  for_blocks(T, block, [&](int64_t first, int64_t n) {
    const Tensor act = acts.slice(0, n), dpre = dpres.slice(0, n), x_rows = x.slice(first, n);
    Tensor product = dy.slice(first, n);  // d(W2 act + b2)
    if (outside) {
      cpu::scale_rows({}, product, outside.from(first), products.slice(0, n));
      product = products.slice(0, n);
    }
    const Tensor pre_rows = pre.slice(first, n), sums = group_sums.slice(0, row_groups(n));
    cpu::matmul_dx(product, down, {dpre, false});
    activate_back(pre_rows, inside.from(first), act, dpre, sums);
    cpu::matmul_dx(dpre, up, rows_of(grads.x, first, n));
    cpu::matmul_dweight(dpre, x_rows, up, block_sum(grads.up_weight, first));
    cpu::sum_rows(sums, block_sum(grads.up_bias, first));
    cpu::matmul_dweight(product, act, down, block_sum(grads.down_weight, first),
                        block_sum(grads.down_bias, first));
  });
}

}  // namespace sft
#endif
