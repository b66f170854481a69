// pos_conv.cu: grouped convolution over the frames of each utterance, with GELU and the residual,
// or alone.
//
// Layout   x, y, pre, dy, dx [T, C] f32 or bf16; weight [C, C / G, K], bias, their gradients f32;
//          weights laid as [C, K, C / G] in the type of x, and for dx with inputs and outputs
//          changed and the taps in reverse (derived)
// Work     x (backward: dpre) is laid as [G, P, C / G], zero rows around each utterance: all taps
//          of a frame then lie side by side, and a frame is a row of a product that overlaps the
//          next one's (mma_tile.cuh), K C / G deep, a product per group. 16 to 64 channels in 16s
//          and up to 128 taps keep their window in shared memory. Bias, GELU and residual as sums
//          are stored. dx: the same over dpre. dweight: a product over rows, split
// Cost     2 T C C / G K FLOP forward, twice that backward; P = T + (B + 1) K / 2. Weights stream
//          from the L2 cache, 128 FLOP a byte; dweight (no window): 43 FLOP a byte, bound by that
// Numbers  f32 sums; pre and dpre are rounded to the type of x; the same bits every run
#include "engine/cuda/column_sums.cuh"
#include "engine/cuda/conv_taps.h"
#include "engine/cuda/gelu.cuh"
#include "engine/cuda/lists.h"
#include "engine/cuda/mma_tile.cuh"
#include "engine/ops/pos_conv.h"

namespace sft::cuda {
namespace {

constexpr int kWarps = 8;

// Frames with `gap` zero rows in front of, between and behind the utterances.
struct Spaced {
  const int32_t* starts;  // [batch + 1]
  int batch, gap;

  __device__ int64_t place(int b) const { return starts[b] + (b + 1) * int64_t{gap}; }
  // The frame that a row holds; -1: none.
  __device__ int frame(int64_t row) const {
    int low = -1, high = batch - 1;  // the last b with place(b) <= row
    while (low < high) {
      const int middle = (low + high + 1) / 2;
      if (place(middle) <= row)
        low = middle;
      else
        high = middle - 1;
    }
    if (low < 0) return -1;
    const int64_t t = row - (low + 1) * int64_t{gap};
    return t < starts[low + 1] ? static_cast<int>(t) : -1;
  }
};

// The channels of one group of a row.
template <class T>
struct GroupRows {
  Matrix<T> x;
  int channels;

  __device__ T* row(int64_t t, int group) const { return x.row(t) + group * channels; }
  __device__ bool whole() const { return x.whole && channels % 8 == 0; }
  __device__ Float8 load(int64_t t, int group, int c) const {
    return load_row(row(t, group), c, channels, whole());
  }
  __device__ void store(int64_t t, int group, int c, const Float8& v) const {
    store_row(row(t, group), c, channels, whole(), v);
  }
};

// dy slope(pre), or x itself.
template <class T>
struct Source {
  GroupRows<T> x;    // dy
  GroupRows<T> pre;  // no data: x itself

  __device__ Float8 load(int64_t t, int group, int c) const {
    Float8 v = x.load(t, group, c);
    if (!pre.x.data) return v;
    const Float8 p = pre.load(t, group, c);
#pragma unroll
    for (int k = 0; k < 8; ++k) v.v[k] *= gelu_slope(p.v[k]);
    return v;
  }
};

// to [groups, rows, channels]; a warp per row.
template <class T>
__global__ void space_rows_kernel(Source<T> source, Spaced frames, int groups, int64_t rows,
                                  T* to) {
  const int64_t row = blockIdx.x * int64_t{kWarps} + threadIdx.x / 32;
  if (row >= rows) return;
  const int t = frames.frame(row), channels = source.x.channels, vectors = (channels + 7) / 8;
  for (int i = threadIdx.x % 32; i < groups * vectors; i += 32) {
    const int group = i / vectors, c = i % vectors * 8;
    store_row(to + (group * rows + row) * channels, c, channels, channels % 8 == 0,
              t < 0 ? Float8{} : source.load(t, group, c));
  }
}

template <class T>
struct BiasSums {
  Matrix<T> dy, pre;
  int C;
  __device__ void operator()(int64_t row, int c, Float8 (&sums)[1]) const {
    const Float8 d = load_row(dy.row(row), c, C, dy.whole);
    Float8 p{};
    if (pre.data) p = load_row(pre.row(row), c, C, pre.whole);
    for (int k = 0; k < 8; ++k) sums[0].v[k] += pre.data ? d.v[k] * gelu_slope(p.v[k]) : d.v[k];
  }
};

// What a product of a group stores: row m of it is the spaced row m + left.
template <class T>
struct StoreFrames {
  Spaced frames;
  int left;
  GroupRows<T> base;  // x; backward: dy; no data: of the convolution alone
  const float* bias;  // null: backward
  GroupRows<T> pre;   // no data: not wanted
  GroupRows<T> to;
  bool add;  // to what is there

  __device__ int place(int64_t row) const { return frames.frame(row + left); }
  __device__ void store(int group, int t, int c, Float8 v) const {
    if (t < 0) return;
    if (bias)
      for (int k = 0; k < 8 && c + k < to.channels; ++k)
        v.v[k] += bias[group * to.channels + c + k];
    if (pre.x.data) pre.store(t, group, c, v);
    if (base.x.data) {
      const Float8 x = base.load(t, group, c);
      for (int k = 0; k < 8; ++k) v.v[k] = x.v[k] + (bias ? gelu(v.v[k]) : v.v[k]);
    }
    if (add) {
      const Float8 before = to.load(t, group, c);
      for (int k = 0; k < 8; ++k) v.v[k] += before.v[k];
    }
    to.store(t, group, c, v);
  }
};

// One call of the op.
struct Conv {
  Tensor weight;
  int64_t groups, T, batch;

  int64_t C() const { return weight.shape[0]; }
  int64_t channels() const { return weight.shape[1]; }  // of a group
  int64_t taps() const { return weight.shape[2]; }
  int64_t left() const { return taps() / 2; }
  int64_t gap() const { return left(); }  // left >= taps - 1 - left
  int64_t rows() const { return T + (batch + 1) * gap(); }
  int64_t width() const { return taps() * channels(); }

  template <class E>
  GroupRows<E> of(Tensor x) const {
    return {x ? matrix<E>(x) : Matrix<E>{}, static_cast<int>(channels())};
  }
  // Windows of all taps over spaced rows: row m is that of the frame at m + before.
  template <class E>
  Operand<E> windows(const E* spaced, int64_t before) const {
    return operand(spaced, channels(), rows() - before, width(), rows() * channels(),
                   rows() * channels());
  }
};

Spaced spaced(Context& ctx, const Conv& conv, Segments segments) {
  return {on_device(ctx, segments.starts), segments.batch(), static_cast<int>(conv.gap())};
}

template <class T>
T* space_rows(Context& ctx, const Conv& conv, const Source<T>& source, const Spaced& frames) {
  const int64_t rows = conv.rows();
  auto* to = static_cast<T*>(ctx.scratch.take(rows * conv.C() * sizeof(T)));
  if (!ctx.dry)
    launch(space_rows_kernel<T>, dim3(ceil_div(rows, kWarps)), dim3(32 * kWarps), 0,
           ctx.gpu->stream(), source, frames, static_cast<int>(conv.groups), rows, to);
  return to;
}

// dx[t, i] = sum_oj weight[o, i, K - 1 - j] dpre[t + j - (K - 1 - left), o].
template <class T>
const T* laid_weight(Context& ctx, const Conv& conv, bool for_dx) {
  const int64_t n = conv.channels(), K = conv.taps();
  const TapLayout layout = for_dx ? TapLayout{conv.C(), K, n, n, n * n * K, K, K - 1, -1, n * K}
                                  : TapLayout{conv.C(), K, n, n, n * n * K, n * K, 0, 1, K};
  const uint32_t kind = for_dx ? fnv1a("pos_conv.dx.taps") : fnv1a("pos_conv.taps");
  return derived<T>(ctx, conv.weight.data, kind, layout.count(),
                    [&](T* to) { lay_taps(ctx, conv.weight.f32(), layout, to); });
}

template <class T>
void convolve(Context& ctx, const Conv& conv, const T* spaced, const T* weight,
              const StoreFrames<T>& store) {
  const int64_t n = conv.channels(), width = conv.width();
  const auto a = conv.windows(spaced, store.left);
  const auto b = operand(weight, width, n, width, n * width, n * width);
  if (fits_window(a))
    product<false, 128, 64, true>(ctx, a, b, conv.groups, {}, store);
  else
    product<false, 128, 64>(ctx, a, b, conv.groups, {}, store);
}

template <class T>
void input_gradient(Context& ctx, const Conv& conv, Tensor residual, const Spaced& frames,
                    const T* dpre, Grad dx) {
  ScratchScope scratch(ctx.scratch);
  const T* weight = laid_weight<T>(ctx, conv, true);
  if (ctx.dry) return;
  convolve(
      ctx, conv, dpre, weight,
      StoreFrames<T>{frames, static_cast<int>(conv.taps() - 1 - conv.left()), conv.of<T>(residual),
                     nullptr, conv.of<T>({}), conv.of<T>(dx.to), dx.add});
}

template <class T>
void weight_gradient(Context& ctx, const Conv& conv, Tensor x, const Spaced& frames, const T* dpre,
                     Grad dweight) {
  ScratchScope scratch(ctx.scratch);
  const int64_t n = conv.channels(), rows = conv.rows() - conv.left();
  const T* xs = space_rows<T>(ctx, conv, {conv.of<T>(x), conv.of<T>({})}, frames);
  const Splits splits = splits_of(rows, 512, 2);
  float* sums = ctx.temporary({conv.C() * splits.count * conv.width()}).f32();
  if (ctx.dry) return;
  const auto a = operand(dpre + conv.left() * n, n, rows, n, rows * n, conv.rows() * n);
  product<true, 64, 128>(ctx, a, conv.windows(xs, conv.left()), conv.groups, splits,
                         StoreSums{sums, n, static_cast<int>(conv.width())});
  sum_taps(ctx, sums, conv.C(), conv.groups, splits.count, conv.taps(), n, dweight);
}

}  // namespace

void pos_conv_forward(Context& ctx, Tensor x, Tensor weight, Tensor bias, int groups,
                      Segments segments, PosConv kind, const PosConvOut& out) {
  const Conv conv{weight, groups, x.rows(), segments.batch()};
  ScratchScope scratch(ctx.scratch);
  const Spaced frames = spaced(ctx, conv, segments);
  with_element(x.dtype, [&]<class T>() {
    const T* taps = laid_weight<T>(ctx, conv, false);
    const T* xs = space_rows<T>(ctx, conv, {conv.of<T>(x), conv.of<T>({})}, frames);
    if (ctx.dry) return;
    convolve(ctx, conv, xs, taps,
             StoreFrames<T>{frames, static_cast<int>(conv.left()),
                            conv.of<T>(kind == PosConv::residual ? x : Tensor()), bias.f32(),
                            conv.of<T>(out.pre), conv.of<T>(out.y), false});
  });
}

void pos_conv_backward(Context& ctx, Tensor dy, Tensor x, Tensor weight, Tensor pre, int groups,
                       Segments segments, Grad dx, Grad dweight, Grad dbias) {
  const Conv conv{weight, groups, x.rows(), segments.batch()};
  ScratchScope scratch(ctx.scratch);
  const Spaced frames = spaced(ctx, conv, segments);
  with_element(x.dtype, [&]<class T>() {
    const T* dpre = space_rows<T>(ctx, conv, {conv.of<T>(dy), conv.of<T>(pre)}, frames);
    if (dbias)
      sum_columns<1>(ctx, BiasSums<T>{matrix<T>(dy), matrix<T>(pre), static_cast<int>(conv.C())},
                     x.rows(), conv.C(), {dbias});
    if (dweight) weight_gradient<T>(ctx, conv, x, frames, dpre, dweight);
    if (dx) input_gradient<T>(ctx, conv, pre ? dy : Tensor(), frames, dpre, dx);
  });
}

}  // namespace sft::cuda
