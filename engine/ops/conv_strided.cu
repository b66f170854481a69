// conv_strided.cu: a strided convolution over channels-last rows as a product of overlapping rows,
// with bias, norm over channels and GELU.
//
// Layout   x [T, Cin], y, pre, dy [T / s, Cout], dx f32 or bf16; with a norm Cout <= 1024; weights
//          and their gradients f32, laid as [Cout, K Cin] and, for dx, [Cin, taps Cout] per phase
//          of the stride, in the type of x (derived)
// Work     forward: one product, rows s Cin apart, K Cin deep; bias and GELU as sums are stored.
//          With a norm: the sums, then a warp per row.
//          backward: a warp per row for dpre; dx: a product per phase over rows of dpre that lie
//          side by side; dweight: a product over rows, split, the splits added up in order
// Cost     2 T/s Cout K Cin FLOP forward, twice that backward: bound by the tensor cores
// Numbers  f32 sums; pre and dpre are rounded to the type of x; the same bits every run
#include "engine/cuda/column_sums.cuh"
#include "engine/cuda/conv_rows.cuh"
#include "engine/cuda/conv_taps.h"
#include "engine/cuda/gelu.cuh"
#include "engine/cuda/mma_tile.cuh"
#include "engine/cuda/row_norm.cuh"
#include "engine/ops/conv_strided.h"

namespace sft::cuda {
namespace {

constexpr int kWarps = 8;           // rows that a block of the row kernels works on
constexpr int kV = 4;               // vectors of 8 that a lane holds of a row
constexpr int kColumns = 256 * kV;  // of a row, at most

// ---- forward

template <class T>
struct StoreRows {
  ConvRows rows;
  const float* bias;  // null: none
  Matrix<T> pre;      // no data: not wanted
  Matrix<T> y;        // no data: a norm comes first
  int C;

  __device__ int place(int64_t row) const {
    return static_cast<int>(rows.is_valid(row) ? row : ~row);
  }
  __device__ void store(int, int place, int c, Float8 v) const {
    const int64_t row = place >= 0 ? place : ~place;
    for (int k = 0; k < 8; ++k)
      v.v[k] = place < 0 ? 0 : bias && c + k < C ? v.v[k] + bias[c + k] : v.v[k];
    if (pre.data) store_row(pre.row(row), c, C, pre.whole, v);
    if (!y.data) return;
    for (float& value : v.v) value = gelu(value);
    store_row(y.row(row), c, C, y.whole, v);
  }
};

struct Norm {
  const float* weight;  // null: none
  const float* bias;
  const float* mean;
  const float* rstd;

  // What GELU is applied to.
  __device__ float of(float normed, int c) const { return normed * weight[c] + bias[c]; }
};

// pre may be y.
template <class T>
__global__ void conv_norm_kernel(Matrix<T> pre, Norm norm, float eps, ConvRows rows, int64_t count,
                                 int C, Matrix<T> y, float* mean, float* rstd) {
  const int64_t row = blockIdx.x * int64_t{kWarps} + warp();
  if (row >= count) return;
  const bool valid = rows.is_valid(row);
  Float8 values[kV] = {};
#pragma unroll
  for (int i = 0; i < kV; ++i) {
    const int c = (i * 32 + lane()) * 8;
    if (c < C && valid) values[i] = load_row(pre.row(row), c, C, pre.whole);
  }
  const Moments m = row_moments(values, C, eps);
#pragma unroll
  for (int i = 0; i < kV; ++i) {
    const int c = (i * 32 + lane()) * 8;
    if (c >= C) break;
#pragma unroll
    for (int k = 0; k < 8; ++k)
      values[i].v[k] =
          valid && c + k < C ? gelu(norm.of((values[i].v[k] - m.mean) * m.rstd, c + k)) : 0;
    store_row(y.row(row), c, C, y.whole, values[i]);
  }
  if (mean && lane() == 0) mean[row] = valid ? m.mean : 0, rstd[row] = valid ? m.rstd : 0;
}

// ---- backward

// Gradient of what GELU is applied to, and the normed row (0 without a norm), of 8 columns.
template <class T>
struct BeforeGelu {
  Matrix<T> dy, pre;
  Norm norm;
  int C;

  __device__ void at(int64_t row, int c, Float8& d, Float8& normed) const {
    d = load_row(dy.row(row), c, C, dy.whole);
    const Float8 p = load_row(pre.row(row), c, C, pre.whole);
    const float mean = norm.weight ? norm.mean[row] : 0, rstd = norm.weight ? norm.rstd[row] : 0;
#pragma unroll
    for (int k = 0; k < 8; ++k) {
      normed.v[k] = c + k < C ? (p.v[k] - mean) * rstd : 0;
      const float v = norm.weight && c + k < C ? norm.of(normed.v[k], c + k) : p.v[k];
      d.v[k] *= gelu_slope(v);
    }
  }
};

// dpre [lead + rows, C], zero in the lead and in rows that are not valid. Without a norm blocks in
// y share a row.
template <class T>
__global__ void conv_dpre_kernel(BeforeGelu<T> before, ConvRows rows, int lead, int64_t count,
                                 Matrix<T> dpre) {
  const int64_t row = blockIdx.x * int64_t{kWarps} + warp() - lead;
  if (row >= count) return;
  const bool valid = row >= 0 && rows.is_valid(row);
  const int C = before.C, first = blockIdx.y * kColumns;
  Float8 d[kV] = {}, normed[kV] = {};
#pragma unroll
  for (int i = 0; i < kV; ++i) {
    const int c = first + (i * 32 + lane()) * 8;
    if (c < C && valid) before.at(row, c, d[i], normed[i]);
  }
  if (before.norm.weight && valid) {
#pragma unroll
    for (int i = 0; i < kV; ++i)
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        const int c = (i * 32 + lane()) * 8 + k;
        d[i].v[k] = c < C ? d[i].v[k] * before.norm.weight[c] : 0;
      }
    row_norm_backward(d, normed, C, before.norm.rstd[row]);
  }
#pragma unroll
  for (int i = 0; i < kV; ++i) {
    const int c = first + (i * 32 + lane()) * 8;
    if (c < C) store_row(dpre.row(row + lead), c, C, dpre.whole, d[i]);
  }
}

template <class T>
struct BiasSums {
  Matrix<T> dpre;
  int C;
  __device__ void operator()(int64_t row, int c, Float8 (&sums)[1]) const {
    const Float8 d = load_row(dpre.row(row), c, C, dpre.whole);
    for (int k = 0; k < 8; ++k) sums[0].v[k] += d.v[k];
  }
};

template <class T>
struct NormSums {
  BeforeGelu<T> before;
  ConvRows rows;
  __device__ void operator()(int64_t row, int c, Float8 (&sums)[2]) const {
    if (!rows.is_valid(row)) return;
    Float8 d, normed;
    before.at(row, c, d, normed);
    for (int k = 0; k < 8; ++k) {
      sums[0].v[k] += d.v[k] * normed.v[k];
      sums[1].v[k] += d.v[k];
    }
  }
};

// dx of the input rows of one phase of the stride.
template <class T>
struct StorePhase {
  Matrix<T> dx;
  int stride, phase, C;
  bool add;

  __device__ int place(int64_t row) const { return static_cast<int>(row * stride + phase); }
  __device__ void store(int, int place, int c, Float8 v) const {
    if (add) {
      const Float8 before = load_row(dx.row(place), c, C, dx.whole);
      for (int k = 0; k < 8; ++k) v.v[k] += before.v[k];
    }
    store_row(dx.row(place), c, C, dx.whole, v);
  }
};

// One call of the op.
struct Conv {
  Tensor x, weight;
  int32_t stride;

  int64_t Cin() const { return weight.shape[1]; }
  int64_t Cout() const { return weight.shape[0]; }
  int64_t taps() const { return weight.shape[2]; }
  int64_t rows() const { return x.rows() / stride; }

  // Rows of x as windows: rows() of them, K Cin numbers each.
  template <class T>
  Operand<T> windows() const {
    return operand(static_cast<const T*>(x.data), stride * Cin(), rows(), taps() * Cin(),
                   x.count());
  }
};

template <class T>
const T* forward_weight(Context& ctx, const Conv& conv) {
  const int64_t Cin = conv.Cin(), C = conv.Cout(), K = conv.taps();
  const TapLayout layout{C, K, Cin, C, 0, Cin * K, 0, 1, K};
  return derived<T>(ctx, conv.weight.data, fnv1a("conv_strided.taps"), layout.count(),
                    [&](T* to) { lay_taps(ctx, conv.weight.f32(), layout, to); });
}

// Input row u * stride + phase is read by output rows u, u - 1, ... through the taps phase, phase +
// stride, ...: its gradient is a convolution over the rows of dpre, last tap first.
int64_t phase_taps(const Conv& conv, int64_t phase) {
  return ceil_div(conv.taps() - phase, conv.stride);
}

// Per phase [Cin, taps, Cout].
template <class T>
const T* backward_weight(Context& ctx, const Conv& conv) {
  const int64_t Cin = conv.Cin(), C = conv.Cout(), K = conv.taps(), s = conv.stride;
  return derived<T>(ctx, conv.weight.data, fnv1a("conv_strided.dx.taps"), K * Cin * C, [&](T* to) {
    for (int64_t phase = 0; phase < s; ++phase) {
      const int64_t taps = phase_taps(conv, phase);
      const TapLayout layout{Cin, taps, C, Cin, 0, K, phase + (taps - 1) * s, -s, Cin * K};
      lay_taps(ctx, conv.weight.f32(), layout, to);
      to += layout.count();
    }
  });
}

template <class T>
void input_gradient(Context& ctx, const Conv& conv, Matrix<T> dpre, int64_t lead, Grad dx) {
  ScratchScope scratch(ctx.scratch);
  const int64_t Cin = conv.Cin(), C = conv.Cout();
  const T* weight = backward_weight<T>(ctx, conv);
  if (ctx.dry) return;
  for (int64_t phase = 0; phase < conv.stride; ++phase) {
    const int64_t taps = phase_taps(conv, phase), first = lead + 1 - taps;
    const auto a = operand<T>(dpre.data + first * C, C, conv.rows(), taps * C,
                              (lead + conv.rows() - first) * C);
    const auto b = operand(weight, taps * C, Cin, taps * C, Cin * taps * C);
    product<false, 128, 128>(ctx, a, b, 1, {},
                             StorePhase<T>{matrix<T>(dx.to), conv.stride, static_cast<int>(phase),
                                           static_cast<int>(Cin), dx.add});
    weight += Cin * taps * C;
  }
}

template <class T>
void weight_gradient(Context& ctx, const Conv& conv, const T* dpre, Grad dweight) {
  ScratchScope scratch(ctx.scratch);
  const int64_t C = conv.Cout(), width = conv.taps() * conv.Cin(), rows = conv.rows();
  const Splits splits = splits_of(rows, 1024, 16);
  float* sums = ctx.temporary({splits.count * C * width}).f32();
  if (ctx.dry) return;
  product<true, 128, 128>(ctx, operand(dpre, C, rows, C, rows * C), conv.windows<T>(), 1, splits,
                          StoreSums{sums, C, static_cast<int>(width)});
  sum_taps(ctx, sums, C, 1, splits.count, conv.taps(), conv.Cin(), dweight);
}

float* data_of(Tensor t) { return static_cast<float*>(t.data); }

}  // namespace

void conv_strided_forward(Context& ctx, Tensor x, Tensor weight, Tensor bias, Tensor norm_weight,
                          Tensor norm_bias, const ConvStrided& options, Slots slots,
                          const ConvStridedOut& out) {
  const Conv conv{x, weight, options.stride};
  const int64_t rows = conv.rows();
  const int C = static_cast<int>(conv.Cout());
  ScratchScope scratch(ctx.scratch);
  const ConvRows valid = conv_rows(ctx, slots, conv.taps(), options.stride);
  with_element(x.dtype, [&]<class T>() {
    const T* taps = forward_weight<T>(ctx, conv);
    if (ctx.dry) return;
    const int64_t width = conv.taps() * conv.Cin();
    const Matrix<T> y = matrix<T>(out.y);
    const Matrix<T> pre = out.pre ? matrix<T>(out.pre) : norm_weight ? y : Matrix<T>{};
    product<false, 128, 128>(
        ctx, conv.windows<T>(), operand(taps, width, int64_t{C}, width, C * width), 1, {},
        StoreRows<T>{valid, data_of(bias), pre, norm_weight ? Matrix<T>{} : y, C});
    if (norm_weight)
      launch(conv_norm_kernel<T>, dim3(ceil_div(rows, kWarps)), dim3(32 * kWarps), 0,
             ctx.gpu->stream(), pre, Norm{norm_weight.f32(), norm_bias.f32(), nullptr, nullptr},
             options.eps, valid, rows, C, y, data_of(out.mean), data_of(out.rstd));
  });
}

void conv_strided_backward(Context& ctx, Tensor dy, Tensor x, Tensor weight, Tensor norm_weight,
                           Tensor norm_bias, Tensor pre, Tensor mean, Tensor rstd,
                           const ConvStrided& options, Slots slots, Grad dx, Grad dweight,
                           Grad dbias, Grad dnorm_weight, Grad dnorm_bias) {
  const Conv conv{x, weight, options.stride};
  const int64_t rows = conv.rows(), C = conv.Cout();
  const int64_t lead = phase_taps(conv, 0) - 1;
  ScratchScope scratch(ctx.scratch);
  const ConvRows valid = conv_rows(ctx, slots, conv.taps(), options.stride);
  const Tensor dpre(ctx.scratch.take(bytes_of(x.dtype, (lead + rows) * C)), {lead + rows, C},
                    x.dtype, x.device);
  with_element(x.dtype, [&]<class T>() {
    const Norm norm{data_of(norm_weight), data_of(norm_bias), data_of(mean), data_of(rstd)};
    const BeforeGelu<T> before{matrix<T>(dy), matrix<T>(pre), norm, static_cast<int>(C)};
    const Matrix<T> to = matrix<T>(dpre), own{static_cast<T*>(dpre.data) + lead * C, C, to.whole};
    if (!ctx.dry)
      launch(conv_dpre_kernel<T>, dim3(ceil_div(lead + rows, kWarps), ceil_div(C, kColumns)),
             dim3(32 * kWarps), 0, ctx.gpu->stream(), before, valid, static_cast<int>(lead), rows,
             to);
    if (dbias) sum_columns<1>(ctx, BiasSums<T>{own, static_cast<int>(C)}, rows, C, {dbias});
    if (dnorm_weight || dnorm_bias)
      sum_columns<2>(ctx, NormSums<T>{before, valid}, rows, C, {dnorm_weight, dnorm_bias});
    if (dx) input_gradient(ctx, conv, to, lead, dx);
    if (dweight) weight_gradient<T>(ctx, conv, own.data, dweight);
  });
}

}  // namespace sft::cuda
