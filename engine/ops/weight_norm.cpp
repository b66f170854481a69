#include "engine/ops/weight_norm.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/cpu/parallel.h"

namespace sft {
namespace {

constexpr int64_t kRows = 256;  // of a chunk of partial sums

// sums[j] = sum over rows of f(row, j), chunk by chunk; partial holds a row of K per chunk.
template <class F>
void sum_columns(int64_t rows, int64_t K, double* partial, double* sums, F&& f) {
  cpu::parallel_for(rows, kRows, [&](int64_t begin, int64_t end) {
    double* mine = partial + begin / kRows * K;
    std::fill(mine, mine + K, 0.0);
    for (int64_t r = begin; r < end; ++r)
      for (int64_t j = 0; j < K; ++j) mine[j] += f(r, j);
  });
  std::fill(sums, sums + K, 0.0);
  for (int64_t chunk = 0; chunk * kRows < rows; ++chunk)
    for (int64_t j = 0; j < K; ++j) sums[j] += partial[chunk * K + j];
}

int64_t partial_count(int64_t rows, int64_t K) { return (rows + kRows - 1) / kRows * K; }

double* doubles(Context& ctx, int64_t count) {
  return ctx.temporary({count}, Dtype::f64).as<double>();
}

void square_sums(const float* v, int64_t rows, int64_t K, double* partial, double* sums) {
  sum_columns(rows, K, partial, sums, [=](int64_t r, int64_t j) {
    const double x = v[r * K + j];
    return x * x;
  });
}

// w = v * factor[column].
void scale_columns(const float* v, const double* factors, int64_t rows, int64_t K, float* w) {
  cpu::parallel_for(rows, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t j = 0; j < K; ++j) w[r * K + j] = static_cast<float>(v[r * K + j] * factors[j]);
  });
}

// Of parameters on a device, where g cannot be compared with the one before: every change of it is
// announced (weights_changed), so a form of g that has to be made anew tells.
Tensor kept_on_cuda(Context& ctx, Tensor g, Tensor v) {
  bool made = false, g_changed = false;
  const auto make = [&](float* w) { cuda::weight_norm_forward(ctx, g, v, w), made = true; };
  float* w = derived(ctx, v.data, fnv1a("weight_norm"), v.count(), make);
  derived(ctx, g.data, fnv1a("weight_norm.g"), 1, [&](float*) { g_changed = true; });
  if (ctx.dry) cuda::weight_norm_forward(ctx, g, v, w);  // for its scratch
  if (g_changed && !made) {
    make(w);
    ctx.prepared.weights_changed(w, v.bytes());
  }
  return Tensor(w, v.shape, Dtype::f32, Device::cuda);
}

}  // namespace

Tensor weight_norm_forward(Context& ctx, Tensor g, Tensor v) {
  const int64_t K = v.width(), rows = v.rows(), count = v.count();
  CHECK(v.shape.rank() == 3 && g.count() == K, "weight_norm: g is {}, v is {}", g.shape, v.shape);
  const bool kept = ctx.prepared.owns(v.data) && ctx.prepared.owns(g.data);
  if (ctx.device == Device::cuda && kept) return kept_on_cuda(ctx, g, v);
  const Tensor out = kept ? Tensor() : ctx.activation(v.shape);
  if (ctx.device == Device::cuda) return cuda::weight_norm_forward(ctx, g, v, out.f32()), out;
  ScratchScope scratch(ctx.scratch);
  double* partial = doubles(ctx, partial_count(rows, K));
  double* factors = doubles(ctx, K);
  const auto make = [&](float* w) {
    ProfileScope profile(ctx.profile, "weight_norm", 3.0 * count, 8.0 * count);
    square_sums(v.f32(), rows, K, partial, factors);
    for (int64_t j = 0; j < K; ++j) factors[j] = g.f32()[j] / std::sqrt(factors[j]);
    scale_columns(v.f32(), factors, rows, K, w);
  };
  if (!kept) {
    if (!ctx.dry) make(out.f32());
    return out;
  }
  // The form is found by v alone, so it remembers the g it was made of.
  const size_t g_bytes = K * sizeof(float);
  const auto make_form = [&](float* w) {
    make(w);
    std::memcpy(w + count, g.data, g_bytes);
  };
  float* w = derived(ctx, v.data, fnv1a("weight_norm"), count + K, make_form);
  if (!ctx.dry && std::memcmp(w + count, g.data, g_bytes) != 0) {
    make_form(w);
    ctx.prepared.weights_changed(w, count * static_cast<int64_t>(sizeof(float)));
  }
  return Tensor(w, v.shape);
}

void weight_norm_backward(Context& ctx, Tensor dw, Tensor g, Tensor v, Grad dg, Grad dv) {
  const int64_t K = v.width(), rows = v.rows();
  ProfileScope profile(ctx.dry ? nullptr : ctx.profile, "weight_norm.backward", 8.0 * v.count(),
                       20.0 * v.count());
  if (ctx.device == Device::cuda) return cuda::weight_norm_backward(ctx, dw, g, v, dg, dv);
  ScratchScope scratch(ctx.scratch);
  double* partial = doubles(ctx, partial_count(rows, K));
  double* squares = doubles(ctx, K);
  double* products = doubles(ctx, K);
  if (ctx.dry) return;
  const float *d = dw.f32(), *x = v.f32();
  square_sums(x, rows, K, partial, squares);
  sum_columns(rows, K, partial, products, [=](int64_t r, int64_t j) {
    return static_cast<double>(d[r * K + j]) * x[r * K + j];
  });
  if (dg) {
    for (int64_t j = 0; j < K; ++j) {
      const double value = products[j] / std::sqrt(squares[j]);
      float& to = dg.to.f32()[j];
      to = static_cast<float>(dg.add ? to + value : value);
    }
  }
  if (!dv) return;
  // dv = factor (dw - v product / square), factor = g / norm.
  for (int64_t j = 0; j < K; ++j) {
    products[j] /= squares[j];
    squares[j] = g.f32()[j] / std::sqrt(squares[j]);
  }
  cpu::parallel_for(rows, kRows, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      for (int64_t j = 0; j < K; ++j) {
        const double value = squares[j] * (d[r * K + j] - x[r * K + j] * products[j]);
        float& to = dv.to.f32()[r * K + j];
        to = static_cast<float>(dv.add ? to + value : value);
      }
  });
}

}  // namespace sft
