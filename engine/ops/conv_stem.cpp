#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/conv_stem.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include <algorithm>
#include <cstring>

#include "engine/cpu/conv_row-inl.h"
#include "engine/cpu/conv_tile-inl.h"
#include "engine/ops/conv_stem.h"

#ifndef SFT_CONV_STEM_TYPES
#define SFT_CONV_STEM_TYPES
namespace sft::stem {

constexpr int64_t kMaxTaps = 16;

// The convolution of one call. padded: C up to whole tiles of columns.
struct Shapes {
  int64_t stride, taps, C, padded;
};

// Sums over one chunk of frames that backward needs, each [padded]: kMaxTaps rows of sums of
// gradient * sample, then the sums of the gradient, of its product with xhat (the gradients of the
// norm), of dy after GELU.
constexpr int64_t kPartialRows = 2 * kMaxTaps;  // room for whole tiles of taps
enum Row : int64_t { kGradient = 28, kNormWeight, kNormBias };

// Statistics of one utterance's group norm.
struct Group {
  const float* mean = nullptr;  // null: another norm
  const float* rstd = nullptr;
};

}  // namespace sft::stem
#endif

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

int64_t stem_columns() { return 2 * lanes(); }

// u of kConvTileRows<2> rows, of which `rows` exist: sums [kConvTileRows, padded]; window is memory
// for the samples, [taps, kConvTileRows].
HWY_INLINE void stem_sums(const float* x, int64_t rows, const stem::Shapes& s, const float* panels,
                          float* window, float* sums) {
  constexpr int kRows = kConvTileRows<2>;
  for (int64_t k = 0; k < s.taps; ++k)
    for (int r = 0; r < kRows; ++r) window[k * kRows + r] = r < rows ? x[r * s.stride + k] : 0.0f;
  const int64_t width = 2 * lanes();
  for (int64_t c = 0; c < s.padded; c += width)
    conv_tile<2, 1>(window, panels + c * s.taps, {1, s.taps, 0, kRows, width}, sums + c, s.padded,
                    true);
}

// Floats of scratch a thread needs: window, sums and gradients of a tile, samples of a tile.
int64_t stem_scratch(const stem::Shapes& s) {
  constexpr int kRows = kConvTileRows<2>;
  return kRows * (stem::kMaxTaps + 2 * s.padded + s.stride) + stem::kPartialRows;
}

// y is read when all of it is written: it goes past the caches.
void stem_forward(const float* x, int64_t rows, const stem::Shapes& s, const float* panels,
                  const cpu::ConvRow& row, float* scratch, float* y) {
  constexpr int kRows = kConvTileRows<2>;
  float *window = scratch, *sums = scratch + kRows * stem::kMaxTaps;
  for (int64_t t = 0; t < rows; t += kRows) {
    const int64_t n = std::min<int64_t>(kRows, rows - t);
    stem_sums(x + t * s.stride, n, s, panels, window, sums);
    for (int64_t r = 0; r < n; ++r) {
      float* u = sums + r * s.padded;
      finish_row<true>(u, row, s.C, row.norm_weight ? u : nullptr, y + (t + r) * s.C);
    }
  }
}

// sums [C] = u of a row -> gradient [padded] of what the sums are multiplied with: of u; under a
// group norm of its output, since the norm's backward needs sums over all frames first.
HWY_INLINE void stem_row_backward(const float* dy, float* u, const stem::Shapes& s,
                                  const cpu::ConvRow& row, const stem::Group& group,
                                  float* gradient, float* partial) {
  float* dweight = partial + stem::kNormWeight * s.padded;
  float* dbias = partial + stem::kNormBias * s.padded;
  if (group.mean) {
    for_vectors(s.C, [&](int64_t i, int64_t n) {
      const Vec v = load(u + i, n);
      const Vec d = hn::Mul(load(dy + i, n), gelu_slope(shifted(u, row, i, n)));
      const Vec xhat = hn::Mul(hn::Sub(v, load(group.mean + i, n)), load(group.rstd + i, n));
      store(d, gradient + i, n);
      store(hn::MulAdd(d, xhat, load(dweight + i, n)), dweight + i, n);
      store(hn::Add(load(dbias + i, n), d), dbias + i, n);
    });
    return;
  }
  for_vectors(s.C, [&](int64_t i, int64_t n) { store(shifted(u, row, i, n), u + i, n); });
  const Moments m = row.norm_weight ? moments(u, s.C, row.eps) : Moments{};
  unfinish_row(dy, u, row, m, s.C, gradient, dweight, dbias);
  add_row(gradient, s.C, partial + stem::kGradient * s.padded);
}

void stem_backward(const float* x, const float* dy, int64_t rows, const stem::Shapes& s,
                   const float* panels, const cpu::ConvRow& row, const stem::Group& group,
                   float* scratch, float* partial) {
  constexpr int kRows = kConvTileRows<2>;
  float *window = scratch, *sums = window + kRows * stem::kMaxTaps;
  float *gradient = sums + kRows * s.padded, *samples = gradient + kRows * s.padded;
  const int64_t reach = kRows * s.stride + stem::kPartialRows;
  std::memset(partial, 0, stem::kPartialRows * s.padded * sizeof(float));
  std::memset(gradient, 0, kRows * s.padded * sizeof(float));
  for (int64_t t = 0; t < rows; t += kRows) {
    const int64_t n = std::min<int64_t>(kRows, rows - t), there = (n - 1) * s.stride + s.taps;
    stem_sums(x + t * s.stride, n, s, panels, window, sums);
    for (int64_t r = 0; r < n; ++r)
      stem_row_backward(dy + (t + r) * s.C, sums + r * s.padded, s, row, group,
                        gradient + r * s.padded, partial);
    std::memcpy(samples, x + t * s.stride, there * sizeof(float));
    std::memset(samples + there, 0, (reach - there) * sizeof(float));
    for (int64_t k = 0; k < s.taps; k += kRows)
      for (int64_t c = 0; c < s.padded; c += 2 * lanes())
        conv_tile<2, 1>(samples + k, gradient + c, {1, n, 0, s.stride, s.padded},
                        partial + k * s.padded + c, s.padded, false);
  }
}

using DoubleLanes = hn::ScalableTag<double>;
constexpr int kProductTaps = 5;  // at a time, with two vectors of samples each

// Over `rows` windows: sums [kProductTaps + 1, kMaxTaps] of first[k] * window[l], and of window[l].
HWY_INLINE void add_products(const double* first, const double* window, int64_t rows,
                             int64_t stride, double* sums) {
  constexpr int kRows = kProductTaps + 1, kVectors = 2;
  const DoubleLanes d;
  const auto at = [&](int k, int v) {
    return sums + k * stem::kMaxTaps + v * static_cast<int64_t>(hn::Lanes(d));
  };
  hn::Vec<DoubleLanes> total[kRows][kVectors];
#pragma GCC unroll 8
  for (int k = 0; k < kRows; ++k)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) total[k][v] = hn::LoadU(d, at(k, v));
  for (int64_t t = 0; t < rows; ++t, first += stride, window += stride)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      const auto x = hn::LoadU(d, window + v * static_cast<int64_t>(hn::Lanes(d)));
#pragma GCC unroll 8
      for (int k = 0; k < kProductTaps; ++k)
        total[k][v] = hn::MulAdd(hn::Set(d, first[k]), x, total[k][v]);
      total[kProductTaps][v] = hn::Add(total[kProductTaps][v], x);
    }
#pragma GCC unroll 8
  for (int k = 0; k < kRows; ++k)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) hn::StoreU(total[k][v], d, at(k, v));
}

// sums [taps + 1, kMaxTaps]: of products of the samples of each window, then of the samples. Where
// both taps are behind the stride, a product is one of the next window's:
//   sum_t x[s t + k] x[s t + l] = sum_t x[s (t + 1) + k - s] x[s (t + 1) + l - s].
void stem_products(const float* x, int64_t rows, const stem::Shapes& s, double* sums) {
  constexpr int64_t kTaps = stem::kMaxTaps, kWindows = 96;  // at a time
  const auto width = 2 * static_cast<int64_t>(hn::Lanes(DoubleLanes()));
  double samples[kWindows * kTaps + 2 * kTaps];
  double blocks[(kTaps + kProductTaps - 1) / kProductTaps][kProductTaps + 1][kTaps] = {};
  for (int64_t t = 0; t < rows; t += kWindows) {
    const int64_t n = std::min(kWindows, rows - t), there = (n - 1) * s.stride + s.taps;
    std::copy_n(x + t * s.stride, there, samples);
    std::fill_n(samples + there, 2 * kTaps, 0.0);
    for (int64_t k = 0; k < s.stride; k += kProductTaps)
      for (int64_t l = 0; l < s.taps; l += width)
        add_products(samples + k, samples + l, n, s.stride, blocks[k / kProductTaps][0] + l);
  }
  const auto product = [&](int64_t k, int64_t l) -> double& { return sums[k * kTaps + l]; };
  const auto square = [&](int64_t k, int64_t l) { return double{x[k]} * double{x[l]}; };
  const int64_t end = s.stride * rows, back = s.stride;
  std::fill_n(sums, s.taps * kTaps, 0.0);
  for (int64_t k = 0; k < s.taps; ++k)
    for (int64_t l = 0; l < s.taps; ++l)
      product(k, l) = k < back   ? blocks[k / kProductTaps][k % kProductTaps][l]
                      : l < back ? product(l, k)
                                 : product(k - back, l - back) - square(k - back, l - back) +
                                       square(end + k - back, end + l - back);
  std::copy_n(blocks[0][kProductTaps], kTaps, sums + s.taps * kTaps);
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <hwy/cache_control.h>

#include <cmath>

#include "engine/cpu/conv_row.h"

namespace sft {
namespace {

using namespace stem;

HWY_EXPORT(stem_columns);
HWY_EXPORT(stem_scratch);
HWY_EXPORT(stem_forward);
HWY_EXPORT(stem_backward);
HWY_EXPORT(stem_products);

constexpr int32_t kForwardRows = 96, kBackwardRows = 384, kProductRows = 1024;  // of a chunk

// One call of the op.
struct Stem {
  Tensor samples, weight, bias, norm_weight, norm_bias;
  ConvStem options;
  Slots slots;
  Shapes shapes;

  int64_t rows() const { return slots.rows() / options.stride; }
  int32_t start(int b) const { return slots.starts[b] / options.stride; }
  int32_t valid(int b) const {
    const auto taps = static_cast<int32_t>(shapes.taps);
    return slots.valid[b] < taps ? 0 : (slots.valid[b] - taps) / options.stride + 1;
  }
  const float* window(const cpu::RowChunk& chunk) const {
    return samples.f32() + (start(chunk.utterance) + chunk.first) * shapes.stride;
  }
  bool group() const { return options.norm == StemNorm::group; }
};

Stem checked(Tensor samples, Tensor weight, Tensor bias, Tensor norm_weight, Tensor norm_bias,
             const ConvStem& options, Slots slots) {
  const int64_t C = weight.shape[0], K = weight.width(),
                columns = HWY_DYNAMIC_DISPATCH(stem_columns)();
  CHECK(samples.shape == Shape{slots.rows()}, "conv_stem: samples are {}, the slots have {}",
        samples.shape, slots.rows());
  CHECK(weight.shape == (Shape{C, 1, K}) && options.stride >= 1 && K >= options.stride &&
            K <= kMaxTaps,
        "conv_stem: weight is {}, expected [C, 1, K], K from the stride {} to {}", weight.shape,
        options.stride, kMaxTaps);
  CHECK(!bias || bias.shape == Shape{C}, "conv_stem: bias is {}, weight {}", bias.shape,
        weight.shape);
  const bool norm = options.norm != StemNorm::none;
  CHECK(norm ? norm_weight.shape == Shape{C} && norm_bias.shape == Shape{C}
             : !norm_weight && !norm_bias,
        "conv_stem: norm weight is {}, bias {}, weight {}", norm_weight.shape, norm_bias.shape,
        weight.shape);
  for (const int32_t start : slots.starts)
    CHECK(start % options.stride == 0, "conv_stem: a slot starts at {}, stride {}", start,
          options.stride);
  return {samples,   weight,  bias,  norm_weight,
          norm_bias, options, slots, {options.stride, K, C, (C + columns - 1) / columns * columns}};
}

std::span<const cpu::RowChunk> chunks_of(Context& ctx, const Stem& stem, int32_t rows) {
  return cpu::row_chunks(ctx, stem.slots.batch(), rows, [&](int b) { return stem.valid(b); });
}

template <class F>
void for_chunks(std::span<const cpu::RowChunk> chunks, F&& f) {
  cpu::parallel_for(static_cast<int64_t>(chunks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(chunks[i], i);
  });
}

const float* weight_panels(Context& ctx, const Stem& stem) {
  const int64_t K = stem.shapes.taps;
  const float* w = stem.weight.f32();
  return derived(ctx, w, fnv1a("conv_stem.panels"), K * stem.shapes.padded, [&](float* out) {
    cpu::pack_panels(K, stem.shapes.C, HWY_DYNAMIC_DISPATCH(stem_columns)(), out,
                     [=](int64_t k, int64_t c) { return w[c * K + k]; });
  });
}

// Sums of products of each utterance's samples, [B, (kMaxTaps + 1) * kMaxTaps].
class Products {
 public:
  static constexpr int64_t kCount = (kMaxTaps + 1) * kMaxTaps;

  Products(Context& ctx, const Stem& stem)
      : chunks_(chunks_of(ctx, stem, kProductRows)), taps_(stem.shapes.taps) {
    const auto count = static_cast<int64_t>(chunks_.size());
    partial_ = ctx.temporary({count * kCount}, Dtype::f64).as<double>();
    sums_ = ctx.temporary({stem.slots.batch() * kCount}, Dtype::f64).as<double>();
  }

  void compute(const Stem& stem) {
    for_chunks(chunks_, [&](const cpu::RowChunk& chunk, int64_t i) {
      HWY_DYNAMIC_DISPATCH(stem_products)
      (stem.window(chunk), chunk.rows, stem.shapes, partial_ + i * kCount);
    });
    std::fill(sums_, sums_ + stem.slots.batch() * kCount, 0.0);
    for (size_t i = 0; i < chunks_.size(); ++i)
      for (int64_t k = 0; k < (taps_ + 1) * kMaxTaps; ++k)
        sums_[chunks_[i].utterance * kCount + k] += partial_[i * kCount + k];
  }

  double product(int b, int64_t k, int64_t l) const { return sums_[b * kCount + k * kMaxTaps + l]; }
  double total(int b, int64_t k) const { return product(b, taps_, k); }

 private:
  std::span<const cpu::RowChunk> chunks_;
  int64_t taps_;
  double *partial_, *sums_;
};

// Mean and rstd of u without its bias, per utterance and channel.
void group_statistics(const Stem& stem, const Products& sums, Tensor mean, Tensor rstd) {
  const int64_t K = stem.shapes.taps, C = stem.shapes.C;
  for (int b = 0; b < stem.slots.batch(); ++b) {
    const double n = std::max(1, stem.valid(b));
    double centre[kMaxTaps], covariance[kMaxTaps][kMaxTaps];
    for (int64_t k = 0; k < K; ++k) centre[k] = sums.total(b, k) / n;
    for (int64_t k = 0; k < K; ++k)
      for (int64_t l = 0; l < K; ++l)
        covariance[k][l] = sums.product(b, k, l) / n - centre[k] * centre[l];
    cpu::parallel_for(C, 64, [&](int64_t begin, int64_t end) {
      for (int64_t c = begin; c < end; ++c) {
        const float* w = stem.weight.f32() + c * K;
        double m = 0, variance = 0;
        for (int64_t k = 0; k < K; ++k) {
          double with = 0;  // a sum of its own: they run side by side
          for (int64_t l = 0; l < K; ++l) with += covariance[k][l] * w[l];
          m += w[k] * centre[k];
          variance += w[k] * with;
        }
        mean.row(b)[c] = static_cast<float>(m);
        rstd.row(b)[c] =
            static_cast<float>(1 / std::sqrt(std::max(0.0, variance) + stem.options.eps));
      }
    });
  }
}

// The group norm as one multiply-add: scale = weight rstd, shift = bias - mean scale; [B, C] each.
struct Affine {
  Tensor scale, shift;

  Affine(Context& ctx, const Stem& stem)
      : scale(ctx.temporary({stem.slots.batch(), stem.shapes.C})),
        shift(ctx.temporary({stem.slots.batch(), stem.shapes.C})) {}
  void compute(const Stem& stem, Tensor mean, Tensor rstd) {
    for (int b = 0; b < stem.slots.batch(); ++b)
      for (int64_t c = 0; c < stem.shapes.C; ++c) {
        const float s = stem.norm_weight.f32()[c] * rstd.row(b)[c];
        scale.row(b)[c] = s;
        shift.row(b)[c] = stem.norm_bias.f32()[c] - mean.row(b)[c] * s;
      }
  }
};

cpu::ConvRow row_of(const Stem& stem, const Affine& affine, int b) {
  if (stem.group()) return {.scale = affine.scale.row(b), .shift = affine.shift.row(b)};
  const bool norm = stem.options.norm == StemNorm::layer;
  return {.shift = stem.bias ? stem.bias.f32() : nullptr,
          .norm_weight = norm ? stem.norm_weight.f32() : nullptr,
          .norm_bias = norm ? stem.norm_bias.f32() : nullptr,
          .eps = stem.options.eps};
}

void zero_rows_between(const Stem& stem, Tensor y) {
  for (int b = 0; b < stem.slots.batch(); ++b)
    std::fill(y.row(stem.start(b) + stem.valid(b)), y.row(stem.start(b + 1)), 0.0f);
}

}  // namespace

ConvStemOut conv_stem_forward(Context& ctx, Tensor samples, Tensor weight, Tensor bias,
                              Tensor norm_weight, Tensor norm_bias, const ConvStem& options,
                              Slots slots) {
  const Stem stem = checked(samples, weight, bias, norm_weight, norm_bias, options, slots);
  const Shapes& s = stem.shapes;
  CHECK(ctx.device == Device::cpu || s.C <= 512, "conv_stem: {} channels, at most 512", s.C);
  ConvStemOut out{.y = ctx.activation({stem.rows(), s.C}, ctx.compute())};
  if (stem.group()) {
    out.mean = ctx.activation({slots.batch(), s.C});
    out.rstd = ctx.activation({slots.batch(), s.C});
  }
  const double n = static_cast<double>(stem.rows() * s.C);
  ProfileScope profile(ctx.dry ? nullptr : ctx.profile, "conv_stem", 2 * n * s.taps, 4 * n);
  if (ctx.device == Device::cuda)
    return cuda::conv_stem_forward(ctx, samples, weight, bias, norm_weight, norm_bias, options,
                                   slots, out),
           out;
  ScratchScope scratch(ctx.scratch);
  const float* panels = weight_panels(ctx, stem);
  Products products(ctx, stem);
  Affine affine(ctx, stem);
  const auto chunks = chunks_of(ctx, stem, kForwardRows);
  const cpu::ThreadScratch threads(ctx, HWY_DYNAMIC_DISPATCH(stem_scratch)(s));
  if (ctx.dry) return out;
  if (stem.group()) {
    products.compute(stem);
    group_statistics(stem, products, out.mean, out.rstd);
    affine.compute(stem, out.mean, out.rstd);
  }
  for_chunks(chunks, [&](const cpu::RowChunk& chunk, int64_t) {
    const int b = chunk.utterance;
    HWY_DYNAMIC_DISPATCH(stem_forward)
    (stem.window(chunk), chunk.rows, s, panels, row_of(stem, affine, b), threads.mine(),
     out.y.row(stem.start(b) + chunk.first));
    hwy::FlushStream();
  });
  zero_rows_between(stem, out.y);
  return out;
}

namespace {

// The partial sums of all chunks, and what they add up to.
struct Partials {
  std::span<const cpu::RowChunk> chunks;
  const float* data;  // [chunks, kPartialRows, padded]
  int64_t padded;

  // Of one utterance, from chunk `first` on; moves `first` behind it.
  double sum(size_t& first, int32_t b, int64_t row, int64_t c) const {
    double total = 0;
    for (; first < chunks.size() && chunks[first].utterance == b; ++first)
      total += data[(first * kPartialRows + row) * padded + c];
    return total;
  }
  double sum(int64_t row, int64_t c) const {
    double total = 0;
    for (size_t i = 0; i < chunks.size(); ++i) total += data[(i * kPartialRows + row) * padded + c];
    return total;
  }
};

void put(Grad grad, int64_t i, double value) {
  float& to = grad.to.f32()[i];
  to = static_cast<float>(grad.add ? to + value : value);
}

// dw of channel c under a group norm, of all utterances. With d the gradient of the norm's output,
// n frames, xhat = rstd (u - mean):
//   du = weight rstd (d - sum(d) / n - xhat sum(d xhat) / n),  dw[k] = sum_t du[t] samples[.. + k].
void group_dweight(const Stem& stem, const Partials& partials, const Products& sums, Tensor mean,
                   Tensor rstd, int64_t c, double* dw) {
  const int64_t K = stem.shapes.taps;
  const float* w = stem.weight.f32() + c * K;
  size_t first = 0;
  for (int b = 0; b < stem.slots.batch(); ++b) {
    if (stem.valid(b) == 0) continue;
    const auto of = [&](int64_t row) {
      size_t i = first;
      return partials.sum(i, b, row, c);
    };
    const double n = stem.valid(b), m = mean.row(b)[c], r = rstd.row(b)[c];
    const double mean_d = of(kNormBias) / n, mean_dx = of(kNormWeight) / n;
    for (int64_t k = 0; k < K; ++k) {
      double u_sample = -m * sums.total(b, k);
      for (int64_t l = 0; l < K; ++l) u_sample += w[l] * sums.product(b, l, k);
      const double total = of(k) - mean_d * sums.total(b, k) - mean_dx * r * u_sample;
      dw[k] += stem.norm_weight.f32()[c] * r * total;
    }
    partials.sum(first, b, 0, c);
  }
}

}  // namespace

void conv_stem_backward(Context& ctx, Tensor dy, Tensor samples, Tensor weight, Tensor bias,
                        Tensor norm_weight, Tensor norm_bias, Tensor mean, Tensor rstd,
                        const ConvStem& options, Slots slots, Grad dweight, Grad dbias,
                        Grad dnorm_weight, Grad dnorm_bias) {
  const Stem stem = checked(samples, weight, bias, norm_weight, norm_bias, options, slots);
  const Shapes& s = stem.shapes;
  const double n = static_cast<double>(stem.rows() * s.C);
  ProfileScope profile(ctx.dry ? nullptr : ctx.profile, "conv_stem.backward", 4 * n * s.taps,
                       4 * n);
  if (ctx.device == Device::cuda)
    return cuda::conv_stem_backward(ctx, dy, samples, weight, bias, norm_weight, norm_bias, mean,
                                    rstd, options, slots, dweight, dbias, dnorm_weight, dnorm_bias);
  ScratchScope scratch(ctx.scratch);
  const float* panels = weight_panels(ctx, stem);
  Products products(ctx, stem);
  Affine affine(ctx, stem);
  const auto chunks = chunks_of(ctx, stem, kBackwardRows);
  const auto count = static_cast<int64_t>(chunks.size());
  float* partial = ctx.temporary({count * kPartialRows * s.padded}).f32();
  const cpu::ThreadScratch threads(ctx, HWY_DYNAMIC_DISPATCH(stem_scratch)(s));
  if (ctx.dry) return;
  if (stem.group()) {
    products.compute(stem);
    affine.compute(stem, mean, rstd);
  }
  for_chunks(chunks, [&](const cpu::RowChunk& chunk, int64_t i) {
    const int b = chunk.utterance;
    const Group group = stem.group() ? Group{mean.row(b), rstd.row(b)} : Group{};
    HWY_DYNAMIC_DISPATCH(stem_backward)
    (stem.window(chunk), dy.row(stem.start(b) + chunk.first), chunk.rows, s, panels,
     row_of(stem, affine, b), group, threads.mine(), partial + i * kPartialRows * s.padded);
  });
  const Partials sums{chunks, partial, s.padded};
  cpu::parallel_for(s.C, 16, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      double dw[kMaxTaps] = {};
      if (dweight && stem.group()) group_dweight(stem, sums, products, mean, rstd, c, dw);
      for (int64_t k = 0; dweight && k < s.taps; ++k)
        put(dweight, c * s.taps + k, stem.group() ? dw[k] : sums.sum(k, c));
      if (dbias) put(dbias, c, stem.group() ? 0 : sums.sum(kGradient, c));
      if (dnorm_weight) put(dnorm_weight, c, sums.sum(kNormWeight, c));
      if (dnorm_bias) put(dnorm_bias, c, sums.sum(kNormBias, c));
    }
  });
}

}  // namespace sft
#endif
