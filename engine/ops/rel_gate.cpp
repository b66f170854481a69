#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/rel_gate.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include <cmath>

#include "engine/cpu/simd-inl.h"
#include "engine/ops/rel_gate.h"

#ifndef SFT_REL_GATE_WEIGHTS
#define SFT_REL_GATE_WEIGHTS
namespace sft {

struct RelGateWeights {
  const float* sums;   // [2, D]: rows 0 to 3 and 4 to 7 of the weight, summed
  float bias[2];       // the same of the bias
  const float* scale;  // [H]
  int64_t H, D;
};

// What frames add to the gradients of the weights.
struct RelGateSums {
  float* sums;   // [2, D]
  float* bias;   // [2]
  float* scale;  // [H]
};

}  // namespace sft
#endif

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {
namespace {

struct Gate {
  float r, s;
  float value(float scale) const { return r * (s * scale - 1) + 2; }
};

float sigmoid(float x) { return 1 / (1 + std::exp(-x)); }

HWY_INLINE Gate gate_of(const float* z, const RelGateWeights& w) {
  Vec r = zero(), s = zero();
  for_vectors(w.D, [&](int64_t k, int64_t n) {
    const Vec x = load(z + k, n);
    r = hn::MulAdd(x, load(w.sums + k, n), r);
    s = hn::MulAdd(x, load(w.sums + w.D + k, n), s);
  });
  return {sigmoid(sum(r) + w.bias[0]), sigmoid(sum(s) + w.bias[1])};
}

// One frame x [C]; gate[h * stride].
void gate_frame(const float* x, const RelGateWeights& w, float* gate, int64_t stride) {
  for (int64_t h = 0; h < w.H; ++h) gate[h * stride] = gate_of(x + h * w.D, w).value(w.scale[h]);
}

// dx may be null. Adds to `to`.
void gate_frame_back(const float* dgate, int64_t stride, const float* x, const RelGateWeights& w,
                     float* dx, bool add, const RelGateSums& to) {
  for (int64_t h = 0; h < w.H; ++h) {
    const float* z = x + h * w.D;
    const Gate gate = gate_of(z, w);
    const float dy = dgate[h * stride];
    const float dr = dy * (gate.s * w.scale[h] - 1) * gate.r * (1 - gate.r);
    const float ds = dy * gate.r * w.scale[h] * gate.s * (1 - gate.s);
    to.bias[0] += dr, to.bias[1] += ds;
    to.scale[h] += dy * gate.r * gate.s;
    for_vectors(w.D, [&](int64_t k, int64_t n) {
      const Vec value = load(z + k, n);
      float *sum_r = to.sums + k, *sum_s = sum_r + w.D;
      store(hn::MulAdd(value, set(dr), load(sum_r, n)), sum_r, n);
      store(hn::MulAdd(value, set(ds), load(sum_s, n)), sum_s, n);
      if (!dx) return;
      float* at = dx + h * w.D + k;
      const Vec back =
          hn::MulAdd(load(w.sums + k, n), set(dr), hn::Mul(load(w.sums + w.D + k, n), set(ds)));
      store(add ? hn::Add(load(at, n), back) : back, at, n);
    });
  }
}

}  // namespace
}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <algorithm>

#include "engine/cpu/parallel.h"

namespace sft {
namespace {

HWY_EXPORT(gate_frame);
HWY_EXPORT(gate_frame_back);

constexpr int64_t kFrames = 64;  // of a chunk; partial sums of weight gradients are per chunk
constexpr int64_t kRows = 4;     // of the weight behind one logit

// sums: memory for 2 D numbers.
RelGateWeights summed(Tensor weight, Tensor bias, Tensor scale, float* sums) {
  const int64_t D = weight.width();
  RelGateWeights w{sums, {}, scale.f32(), scale.count(), D};
  for (int64_t half = 0; half < 2; ++half) {
    std::fill_n(sums + half * D, D, 0.0f);
    for (int64_t row = half * kRows; row < (half + 1) * kRows; ++row) {
      w.bias[half] += bias.f32()[row];
      for (int64_t k = 0; k < D; ++k) sums[half * D + k] += weight.row(row)[k];
    }
  }
  return w;
}

// to (+)= sum over chunks of partial[chunk * stride + i], i < width; `copies` times behind each
// other.
void sum_chunks(const float* partial, int64_t chunks, int64_t stride, int64_t width, float* to,
                int64_t copies, bool add) {
  for (int64_t i = 0; i < width; ++i) {
    float total = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) total += partial[chunk * stride + i];
    for (int64_t copy = 0; copy < copies; ++copy) {
      float& at = to[copy * width + i];
      at = add ? at + total : total;
    }
  }
}

}  // namespace

Tensor rel_gate_forward(Context& ctx, Tensor x, Tensor weight, Tensor bias, Tensor scale) {
  const int64_t T = x.rows(), C = x.width(), H = scale.count();
  CHECK(H > 0 && C % H == 0 && (weight.shape == Shape{2 * kRows, C / H}) &&
            bias.shape == Shape{2 * kRows},
        "rel_gate: weight is {}, bias {}, scale {}, x {}", weight.shape, bias.shape, scale.shape,
        x.shape);
  const Tensor gate = ctx.acts.loose({H, T});
  ScratchScope scratch(ctx.scratch);
  float* sums = ctx.device == Device::cpu ? ctx.temporary({2 * C / H}).f32() : nullptr;
  if (ctx.dry) return gate;
  ProfileScope profile(ctx.profile, "rel_gate", 4.0 * T * C,
                       static_cast<double>(bytes_of(x.dtype, T * C)));
  if (ctx.device == Device::cuda)
    return cuda::rel_gate_forward(ctx, x, weight, bias, scale, gate), gate;
  const RelGateWeights weights = summed(weight, bias, scale, sums);
  cpu::parallel_for(T, kFrames, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      HWY_DYNAMIC_DISPATCH(gate_frame)(x.row(t), weights, gate.f32() + t, T);
  });
  return gate;
}

void rel_gate_backward(Context& ctx, Tensor dgate, Tensor x, Tensor weight, Tensor bias,
                       Tensor scale, const RelGateGrads& grads) {
  const int64_t T = x.rows(), C = x.width(), H = scale.count(), D = C / H;
  ProfileScope profile(ctx.dry ? nullptr : ctx.profile, "rel_gate.backward", 12.0 * T * C,
                       2.0 * static_cast<double>(bytes_of(x.dtype, T * C)));
  if (ctx.device == Device::cuda)
    return cuda::rel_gate_backward(ctx, dgate, x, weight, bias, scale, grads);
  ScratchScope scratch(ctx.scratch);
  const int64_t chunks = (T + kFrames - 1) / kFrames, width = 2 * D + 2 + H;
  float* sums = ctx.temporary({2 * D}).f32();
  float* partial = ctx.temporary({chunks * width}).f32();
  if (ctx.dry) return;
  const RelGateWeights weights = summed(weight, bias, scale, sums);
  cpu::parallel_for(T, kFrames, [&](int64_t begin, int64_t end) {
    float* mine = partial + begin / kFrames * width;
    std::fill_n(mine, width, 0.0f);
    for (int64_t t = begin; t < end; ++t) HWY_DYNAMIC_DISPATCH(gate_frame_back)
    (dgate.f32() + t, T, x.row(t), weights, grads.x ? grads.x.to.row(t) : nullptr, grads.x.add,
     {mine, mine + 2 * D, mine + 2 * D + 2});
  });
  const auto reduce = [&](int64_t first, int64_t count, float* to, int64_t copies, bool add) {
    sum_chunks(partial + first, chunks, width, count, to, copies, add);
  };
  for (int64_t half = 0; half < 2; ++half) {
    const auto [dweight, dbias] = std::pair(grads.weight, grads.bias);
    if (dweight) reduce(half * D, D, dweight.to.row(half * kRows), kRows, dweight.add);
    if (dbias) reduce(2 * D + half, 1, dbias.to.f32() + half * kRows, kRows, dbias.add);
  }
  if (grads.scale) reduce(2 * D + 2, H, grads.scale.to.f32(), 1, grads.scale.add);
}

}  // namespace sft
#endif
