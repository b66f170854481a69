#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/conv_strided.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include <algorithm>
#include <cstring>

#include "engine/cpu/conv_row-inl.h"
#include "engine/cpu/product-inl.h"
#include "engine/ops/conv_strided.h"

#ifndef SFT_CONV_STRIDED_TYPES
#define SFT_CONV_STRIDED_TYPES
namespace sft::strided {

constexpr int64_t kInputs = 48;  // channels of a piece of dweight: tiles of every instruction set

// What is saved of a chunk of rows; each may be null.
struct Saved {
  float* pre;
  float* mean;
  float* rstd;
};

}  // namespace sft::strided
#endif

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

// For panel_product: sums stay where they are.
void kept(const float*, int64_t, int64_t, int64_t, int64_t, int64_t) {}

int64_t strided_columns() { return 2 * lanes(); }

// sums [kProductRows, step] of up to kProductRows rows of A times the panels of B.
void strided_product(const cpu::ProductRows& a, int64_t rows, const float* panels, int64_t padded,
                     float* copy, float* sums, int64_t step) {
  panel_product(a, rows, {panels, padded, {panels, a.from(rows)}}, copy, {sums, step, true}, kept);
}

// Pairs of rows of a convolution with three taps and stride 2, by five products of taps in place of
// six: F(2,2) of Winograd (Arithmetic Complexity of Computations, 1980). A pair reads five rows of
// x, e0 o0 e1 o1 e2; x: the first of them.
//
//   y0 = (w0 + w2) e1 + w0 (e0 - e1) + w1 o0
//   y1 = (w0 + w2) e1 + w2 (e2 - e1) + w1 o1
//
// Neither y reads a row that it does not read in the convolution. For independent x and w of equal
// size the squares of the terms add up to 5/3 of the convolution's, and rounding errors to 1.3
// times; w0 + w2 and the differences are rounded once each, about one unit more of the sum.
// panels: those of pair_panels; sums [2 kProductRows, step]: y0, y1, y0, ...
void strided_pairs(const cpu::ProductRows& x, int64_t pairs, const float* panels, int64_t padded,
                   float* copy, float* sums, int64_t step) {
  const int64_t C = x.depth, panel = C * padded, two = 2 * step;
  float *y0 = sums, *y1 = sums + step;
  const auto row = [&](int64_t r) { return cpu::ProductRows{x.data + r * C, x.end, x.step, C}; };
  const auto w = [&](int64_t tap, int64_t next_tap, int64_t next_row) {
    return cpu::ProductPanels{
        panels + tap * panel, padded, {panels + next_tap * panel, row(next_row)}};
  };
  const auto add = [&](const auto& rows, const cpu::ProductPanels& taps, float* y) {
    panel_product(rows, pairs, taps, copy, {y, two, true, true}, kept);
  };
  panel_product(row(2), pairs, w(0, 1, 0), copy, {y0, two, true},
                [&](const float* from, int64_t, int64_t r, int64_t count, int64_t c, int64_t n) {
                  for (float* to = y1 + r * two + c; count-- > 0; from += two, to += two)
                    std::memcpy(to, from, n * sizeof(float));
                });
  add(cpu::ProductDifferences{row(0), 2 * C}, w(1, 2, 4), y0);
  add(cpu::ProductDifferences{row(4), -2 * C}, w(2, 3, 1), y1);
  add(row(1), w(3, 3, 3), y0);
  add(row(3), w(3, 0, 4 * pairs + 2), y1);
}

void strided_finish(float* sums, int64_t rows, int64_t step, int64_t C, const cpu::ConvRow& row,
                    const strided::Saved& saved, float* y) {
  for (int64_t r = 0; r < rows; ++r) {
    float* u = sums + r * step;
    float* pre = saved.pre ? saved.pre + r * C : row.norm_weight ? u : nullptr;
    const Moments m = finish_row(u, row, C, pre, y + r * C);
    if (saved.mean) saved.mean[r] = m.mean, saved.rstd[r] = m.rstd;
  }
}

// dy [rows, C] -> dpre [rows, padded]; partial [3, C]: dnorm_weight, dnorm_bias, dbias are added
// to.
void strided_unfinish(const float* dy, const strided::Saved& saved, int64_t rows, int64_t padded,
                      int64_t C, const cpu::ConvRow& row, float* dpre, float* partial) {
  for (int64_t r = 0; r < rows; ++r) {
    const Moments m = row.norm_weight ? Moments{saved.mean[r], saved.rstd[r]} : Moments{};
    float* d = dpre + r * padded;
    unfinish_row(dy + r * C, saved.pre + r * C, row, m, C, d, partial, partial + C);
    add_row(d, C, partial + 2 * C);
  }
}

// sums [kInputs, columns of a tile] += sum over t of a[t][r] b[t][c], rows of a a_step apart.
void strided_outer(const float* a, int64_t a_step, const float* b, int64_t depth, float* sums) {
  constexpr int kTile = kConvTileRows<2>;
  const int64_t width = 2 * lanes();
  for (int64_t r = 0; r < strided::kInputs; r += kTile)
    conv_tile<2, 1>(a + r, b, {1, depth, 0, a_step, width}, sums + r * width, width, false);
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "engine/cpu/conv_row.h"
#include "engine/cpu/gemm.h"

namespace sft {
namespace {

using namespace strided;

HWY_EXPORT(strided_columns);
HWY_EXPORT(strided_product);
HWY_EXPORT(strided_pairs);
HWY_EXPORT(strided_finish);
HWY_EXPORT(strided_unfinish);
HWY_EXPORT(strided_outer);

int64_t whole_tiles(int64_t columns) {
  const int64_t width = HWY_DYNAMIC_DISPATCH(strided_columns)();
  return (columns + width - 1) / width * width;
}

// One call of the op.
struct Conv {
  Tensor x, weight, bias, norm_weight, norm_bias;
  ConvStrided options;
  Slots slots;

  int64_t Cin() const { return weight.shape[1]; }
  int64_t Cout() const { return weight.shape[0]; }
  int64_t taps() const { return weight.shape[2]; }
  int64_t rows() const { return x.rows() / options.stride; }
  bool in_pairs() const { return taps() == 3 && options.stride == 2; }
  int64_t start(int b) const { return slots.starts[b] / options.stride; }
  int32_t valid(int b) const {
    const auto K = static_cast<int32_t>(taps());
    return slots.valid[b] < K ? 0 : (slots.valid[b] - K) / options.stride + 1;
  }
  cpu::ProductRows windows(int64_t t) const {
    const int64_t step = options.stride * Cin();
    return {x.f32() + t * step, x.f32() + x.count(), step, taps() * Cin()};
  }
  // Pairs of output rows, the first of which is row t.
  cpu::ProductRows pairs(int64_t t) const {
    return {x.f32() + 2 * t * Cin(), x.f32() + x.count(), 4 * Cin(), Cin()};
  }
  cpu::ConvRow row() const {
    return {.shift = bias ? bias.f32() : nullptr,
            .norm_weight = norm_weight ? norm_weight.f32() : nullptr,
            .norm_bias = norm_weight ? norm_bias.f32() : nullptr,
            .eps = options.eps};
  }
  double flops() const { return 2.0 * rows() * Cout() * Cin() * taps(); }
};

void check(const Conv& c) {
  CHECK(c.weight.shape.rank() == 3 && c.options.stride >= 1 && c.taps() >= c.options.stride &&
            c.x.shape == (Shape{c.slots.rows(), c.Cin()}) && c.x.dense(),
        "conv_strided: weight is {}, stride {}, x {}, the slots have {} rows", c.weight.shape,
        c.options.stride, c.x.shape, c.slots.rows());
  const Shape C{c.Cout()};
  CHECK(!c.bias || c.bias.shape == C, "conv_strided: bias is {}, weight {}", c.bias.shape,
        c.weight.shape);
  CHECK((!c.norm_weight && !c.norm_bias) || (c.norm_weight.shape == C && c.norm_bias.shape == C),
        "conv_strided: norm weight is {}, bias {}, weight {}", c.norm_weight.shape,
        c.norm_bias.shape, c.weight.shape);
  for (const int32_t start : c.slots.starts)
    CHECK(start % c.options.stride == 0, "conv_strided: a slot starts at {}, stride {}", start,
          c.options.stride);
}

// w0 + w2, w0, w2 and w1 of three taps, each [Cin, Cout] in panels.
const float* pair_panels(Context& ctx, const Conv& conv) {
  const int64_t Cin = conv.Cin(), panel = Cin * whole_tiles(conv.Cout());
  const float* w = conv.weight.f32();
  return derived(ctx, w, fnv1a("conv_strided.pairs"), 4 * panel, [=, C = conv.Cout()](float* out) {
    const auto pack = [=](int64_t to, auto&& of) {
      cpu::pack_panels(Cin, C, HWY_DYNAMIC_DISPATCH(strided_columns)(), out + to * panel,
                       [=](int64_t i, int64_t o) { return of(w + (o * Cin + i) * 3); });
    };
    pack(0, [](const float* taps) { return taps[0] + taps[2]; });
    pack(1, [](const float* taps) { return taps[0]; });
    pack(2, [](const float* taps) { return taps[2]; });
    pack(3, [](const float* taps) { return taps[1]; });
  });
}

// [taps * Cin, Cout] in panels, or pair_panels.
const float* forward_panels(Context& ctx, const Conv& conv) {
  if (conv.in_pairs()) return pair_panels(ctx, conv);
  const int64_t Cin = conv.Cin(), K = conv.taps(), depth = K * Cin;
  const float* w = conv.weight.f32();
  const int64_t count = depth * whole_tiles(conv.Cout());
  return derived(ctx, w, fnv1a("conv_strided.panels"), count, [=, C = conv.Cout()](float* out) {
    cpu::pack_panels(depth, C, HWY_DYNAMIC_DISPATCH(strided_columns)(), out,
                     [=](int64_t k, int64_t o) { return w[(o * Cin + k % Cin) * K + k / Cin]; });
  });
}

// Of the whole depth, 16 bits each, where the math mode has such products.
cpu::narrow::Panels forward_narrow(Context& ctx, const Conv& conv) {
  if (ctx.math == Math::exact) return {};
  const int64_t Cin = conv.Cin(), K = conv.taps(), C = conv.Cout(), depth = K * Cin;
  const float* w = conv.weight.f32();
  const float* rows = derived(ctx, w, fnv1a("conv_strided.rows"), C * depth, [=](float* out) {
    cpu::parallel_for(C, 8, [=](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; ++o)
        for (int64_t k = 0; k < depth; ++k)
          out[o * depth + k] = w[(o * Cin + k % Cin) * K + k / Cin];
    });
  });
  return cpu::narrow_panels(ctx, w, fnv1a("conv_strided.narrow"), {rows, C, depth, depth, 1});
}

// sums [rows rounded up to tiles, step] of rows of A times the panels of B.
void narrow_product(const cpu::ProductRows& a, int64_t rows, const cpu::narrow::Panels& panels,
                    int64_t columns, float* copy, float* sums, int64_t step) {
  namespace n = cpu::narrow;
  const n::Rows packed = n::rows_in(copy, panels.math, rows, a.depth);
  for (int64_t r = 0; r < rows; r += n::kTileRows) n::pack_tile(a, rows, r, packed);
  for (int64_t c = 0; c < columns; c += n::kTileColumns)
    for (int64_t r = 0; r < rows; r += n::kTileRows)
      n::multiply(packed, r, panels, c, sums + r * step + c, step);
}

// sums [rows, whole tiles + gap] of rows [begin, end).
void exact_product(const Conv& conv, int64_t begin, int64_t end, const float* panels, float* copy,
                   float* sums) {
  const int64_t padded = whole_tiles(conv.Cout()), step = padded + cpu::kProductGap;
  if (conv.in_pairs()) {
    HWY_DYNAMIC_DISPATCH(strided_pairs)
    (conv.pairs(begin), (end - begin + 1) / 2, panels, padded, copy, sums, step);
    return;
  }
  HWY_DYNAMIC_DISPATCH(strided_product)
  (conv.windows(begin), end - begin, panels, padded, copy, sums, step);
}

void zero_rows_between(const Conv& conv, Tensor y) {
  for (int b = 0; b < conv.slots.batch(); ++b)
    std::fill(y.row(conv.start(b) + conv.valid(b)), y.row(conv.start(b + 1)), 0.0f);
}

float* at(Tensor t, int64_t row) { return t ? t.f32() + row * t.row_stride : nullptr; }

}  // namespace

ConvStridedOut conv_strided_forward(Context& ctx, Tensor x, Tensor weight, Tensor bias,
                                    Tensor norm_weight, Tensor norm_bias,
                                    const ConvStrided& options, Slots slots) {
  const Conv conv{x, weight, bias, norm_weight, norm_bias, options, slots};
  check(conv);
  const int64_t rows = conv.rows(), C = conv.Cout(), padded = whole_tiles(C);
  CHECK(ctx.device == Device::cpu || !norm_weight || C <= 1024,
        "conv_strided: {} channels in a norm, at most 1024", C);
  ConvStridedOut out{.y = ctx.activation({rows, C}, x.dtype)};
  if (options.keep) out.pre = ctx.activation({rows, C}, x.dtype);
  if (options.keep && norm_weight) {
    out.mean = ctx.activation({rows, 1});
    out.rstd = ctx.activation({rows, 1});
  }
  ProfileScope profile(ctx.dry ? nullptr : ctx.profile, "conv_strided", conv.flops(),
                       4.0 * (x.count() + rows * C));
  if (ctx.device == Device::cuda)
    return cuda::conv_strided_forward(ctx, x, weight, bias, norm_weight, norm_bias, options, slots,
                                      out),
           out;
  ScratchScope scratch(ctx.scratch);
  const cpu::narrow::Panels narrow = forward_narrow(ctx, conv);
  const float* panels = narrow ? nullptr : forward_panels(ctx, conv);
  const int64_t step = padded + cpu::kProductGap, depth = conv.windows(0).depth;
  const int64_t copied = narrow ? cpu::narrow::chunk_floats(depth) : cpu::kProductCopy;
  const int64_t each = !narrow && conv.in_pairs() ? 2 : 1;  // rows at a time
  const cpu::ThreadScratch threads(ctx, copied + each * cpu::kProductRows * step);
  if (ctx.dry) return out;
  const int64_t chunk = narrow ? cpu::narrow::chunk(rows, depth)
                               : each * cpu::product_chunk((rows + each - 1) / each);
  cpu::parallel_for(rows, chunk, [&](int64_t begin, int64_t end) {
    float *copy = threads.mine(), *sums = copy + copied;
    if (narrow)
      narrow_product(conv.windows(begin), end - begin, narrow, padded, copy, sums, step);
    else
      exact_product(conv, begin, end, panels, copy, sums);
    HWY_DYNAMIC_DISPATCH(strided_finish)
    (sums, end - begin, step, C, conv.row(),
     {at(out.pre, begin), at(out.mean, begin), at(out.rstd, begin)}, out.y.row(begin));
  });
  zero_rows_between(conv, out.y);
  if (out.pre) zero_rows_between(conv, out.pre);
  return out;
}

namespace {

// Input row u * stride + phase is read by output rows u, u - 1, ... through the taps phase, phase +
// stride, ...: the gradient of each phase is a convolution over the rows of dpre, last tap first.
struct Phase {
  int64_t phase, taps, offset;  // offset: of its panels
};

Phase phase_of(const Conv& conv, int64_t phase) {
  const int64_t stride = conv.options.stride, K = conv.taps();
  const auto taps_of = [=](int64_t p) { return (K - p + stride - 1) / stride; };
  Phase out{phase, taps_of(phase), 0};
  for (int64_t p = 0; p < phase; ++p)
    out.offset += taps_of(p) * whole_tiles(conv.Cout()) * whole_tiles(conv.Cin());
  return out;
}

// Per phase [taps * padded Cout, Cin] in panels.
const float* backward_panels(Context& ctx, const Conv& conv) {
  const int64_t Cin = conv.Cin(), C = conv.Cout(), K = conv.taps(), padded = whole_tiles(C);
  const int64_t stride = conv.options.stride;
  const float* w = conv.weight.f32();
  const int64_t count = K * padded * whole_tiles(Cin);
  return derived(ctx, w, fnv1a("conv_strided.dx.panels"), count, [=](float* out) {
    for (int64_t p = 0; p < stride; ++p) {
      const Phase phase = phase_of(conv, p);
      cpu::pack_panels(phase.taps * padded, Cin, HWY_DYNAMIC_DISPATCH(strided_columns)(),
                       out + phase.offset, [=](int64_t k, int64_t i) {
                         const int64_t tap = p + (phase.taps - 1 - k / padded) * stride;
                         const int64_t o = k % padded;
                         return o < C ? w[(o * Cin + i) * K + tap] : 0.0f;
                       });
    }
  });
}

// Of one phase, 16 bits each.
cpu::narrow::Panels backward_narrow(Context& ctx, const Conv& conv, const Phase& phase) {
  const int64_t Cin = conv.Cin(), C = conv.Cout(), K = conv.taps(), padded = whole_tiles(C);
  const int64_t stride = conv.options.stride, depth = phase.taps * padded;
  const float* w = conv.weight.f32();
  const auto kind = static_cast<uint32_t>(phase.phase) * 8;
  const float* rows =
      derived(ctx, w, fnv1a("conv_strided.dx.rows") + kind, Cin * depth, [=](float* out) {
        cpu::parallel_for(Cin, 8, [=](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i)
            for (int64_t k = 0; k < depth; ++k) {
              const int64_t tap = phase.phase + (phase.taps - 1 - k / padded) * stride;
              const int64_t o = k % padded;
              out[i * depth + k] = o < C ? w[(o * Cin + i) * K + tap] : 0.0f;
            }
        });
      });
  return cpu::narrow_panels(ctx, w, fnv1a("conv_strided.dx.narrow") + kind,
                            {rows, Cin, depth, depth, 1});
}

// Gradient of pre, [lead + rows, padded]: zero in the lead, between slots and past C.
struct PreGradient {
  float* data;
  int64_t lead, padded;
  float* row(int64_t t) const { return data + (lead + t) * padded; }
};

// dpre of all valid rows; partial [chunks, 3, C]: sums for the gradients of norm and bias.
void unfinish(const Conv& conv, Tensor dy, const ConvStridedOut& saved, const PreGradient& dpre,
              std::span<const cpu::RowChunk> chunks, float* partial) {
  const int64_t C = conv.Cout();
  std::fill(dpre.data, dpre.row(conv.rows()), 0.0f);
  cpu::parallel_for(static_cast<int64_t>(chunks.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = conv.start(chunks[i].utterance) + chunks[i].first;
      float* mine = partial + i * 3 * C;
      std::memset(mine, 0, 3 * C * sizeof(float));
      HWY_DYNAMIC_DISPATCH(strided_unfinish)
      (dy.row(t), {at(saved.pre, t), at(saved.mean, t), at(saved.rstd, t)}, chunks[i].rows,
       dpre.padded, C, conv.row(), dpre.row(t), mine);
    }
  });
}

void sum_partials(const float* partial, int64_t chunks, int64_t C, int64_t which, Grad to) {
  if (!to) return;
  for (int64_t c = 0; c < C; ++c) {
    double total = 0;
    for (int64_t i = 0; i < chunks; ++i) total += partial[(i * 3 + which) * C + c];
    float& out = to.to.f32()[c];
    out = static_cast<float>(to.add ? out + total : total);
  }
}

// Rows of dx of one phase; panels, or 16 bits each.
struct PhaseWeight {
  Phase phase;
  const float* panels;
  cpu::narrow::Panels narrow;
};

void phase_gradient(const Conv& conv, const PreGradient& dpre, const PhaseWeight& weight,
                    const cpu::ThreadScratch& threads, int64_t copied, Grad dx) {
  const Phase& phase = weight.phase;
  const float* panels = weight.panels;
  const cpu::narrow::Panels& narrow = weight.narrow;
  const int64_t Cin = conv.Cin(), padded = whole_tiles(Cin), step = padded + cpu::kProductGap;
  const int64_t depth = phase.taps * dpre.padded, stride = conv.options.stride;
  const int64_t chunk =
      narrow ? cpu::narrow::chunk(conv.rows(), depth) : cpu::product_chunk(conv.rows());
  cpu::parallel_for(conv.rows(), chunk, [&](int64_t begin, int64_t end) {
    float *copy = threads.mine(), *sums = copy + copied;
    const cpu::ProductRows rows{dpre.row(begin - phase.taps + 1), dpre.row(conv.rows()),
                                dpre.padded, depth};
    if (narrow)
      narrow_product(rows, end - begin, narrow, padded, copy, sums, step);
    else
      HWY_DYNAMIC_DISPATCH(strided_product)
    (rows, end - begin, panels, padded, copy, sums, step);
    for (int64_t r = 0; r < end - begin; ++r) {
      float* to = dx.to.row((begin + r) * stride + phase.phase);
      for (int64_t i = 0; i < Cin; ++i)
        to[i] = dx.add ? to[i] + sums[r * step + i] : sums[r * step + i];
    }
  });
}

// dweight as sums over slabs of frames. A slab of x and of dpre is copied side by side in the order
// in which it is read, and stays in the cache while every piece of dweight (kInputs input channels,
// a tile of output channels, one tap) gets its share.
class WeightGradient {
 public:
  WeightGradient(Context& ctx, const Conv& conv, const PreGradient& dpre)
      : conv_(conv),
        dpre_(dpre),
        width_(HWY_DYNAMIC_DISPATCH(strided_columns)()),
        tiles_(dpre.padded / width_),
        blocks_((conv.Cin() + kInputs - 1) / kInputs),
        slab_rows_((kFrames - 1) * conv.options.stride + conv.taps()),
        x_(ctx.temporary({blocks_ * slab_rows_ * kInputs}).f32()),
        d_(ctx.temporary({kFrames * dpre.padded}).f32()),
        sums_(ctx.temporary({pieces() * kInputs * width_}).f32()) {}

  void compute(Grad dweight) {
    std::memset(sums_, 0, pieces() * kInputs * width_ * sizeof(float));
    for (int64_t t = 0; t < conv_.rows(); t += kFrames) {
      const int64_t frames = std::min(kFrames, conv_.rows() - t);
      cpu::parallel_for(blocks_, 1, [&](int64_t begin, int64_t) { copy_x(begin, t); });
      cpu::parallel_for(tiles_, 1, [&](int64_t begin, int64_t) { copy_d(begin, t, frames); });
      cpu::parallel_for(pieces(), 16, [&](int64_t begin, int64_t end) {
        for (int64_t piece = begin; piece < end; ++piece) add_slab(piece, frames);
      });
    }
    cpu::parallel_for(pieces(), 16, [&](int64_t begin, int64_t end) {
      for (int64_t piece = begin; piece < end; ++piece) write(piece, dweight);
    });
  }

 private:
  static constexpr int64_t kFrames = 256;  // of a slab

  int64_t pieces() const { return blocks_ * tiles_ * conv_.taps(); }
  int64_t tap(int64_t piece) const { return piece % conv_.taps(); }
  int64_t tile(int64_t piece) const { return piece / conv_.taps() % tiles_; }
  int64_t block(int64_t piece) const { return piece / conv_.taps() / tiles_; }
  int64_t inputs(int64_t block) const { return std::min(kInputs, conv_.Cin() - block * kInputs); }

  // Rows of x that the frames from t on read, zeros where there is none.
  void copy_x(int64_t block, int64_t t) {
    const int64_t first = t * conv_.options.stride, n = inputs(block);
    float* to = x_ + block * slab_rows_ * kInputs;
    for (int64_t row = first; row < first + slab_rows_; ++row, to += kInputs) {
      const int64_t there = row < conv_.x.rows() ? n : 0;
      if (there) std::memcpy(to, conv_.x.row(row) + block * kInputs, there * sizeof(float));
      std::memset(to + there, 0, (kInputs - there) * sizeof(float));
    }
  }

  void copy_d(int64_t tile, int64_t t, int64_t frames) {
    float* to = d_ + tile * kFrames * width_;
    for (int64_t i = 0; i < frames; ++i)
      std::memcpy(to + i * width_, dpre_.row(t + i) + tile * width_, width_ * sizeof(float));
  }

  void add_slab(int64_t piece, int64_t frames) {
    const float* x = x_ + (block(piece) * slab_rows_ + tap(piece)) * kInputs;
    HWY_DYNAMIC_DISPATCH(strided_outer)
    (x, conv_.options.stride * kInputs, d_ + tile(piece) * kFrames * width_, frames,
     sums_ + piece * kInputs * width_);
  }

  void write(int64_t piece, Grad dweight) const {
    const float* sums = sums_ + piece * kInputs * width_;
    const int64_t i0 = block(piece) * kInputs, o0 = tile(piece) * width_;
    for (int64_t o = 0; o < std::min(width_, conv_.Cout() - o0); ++o)
      for (int64_t i = 0; i < inputs(block(piece)); ++i) {
        float& to = dweight.to.f32()[((o0 + o) * conv_.Cin() + i0 + i) * conv_.taps() + tap(piece)];
        to = dweight.add ? to + sums[i * width_ + o] : sums[i * width_ + o];
      }
  }

  const Conv& conv_;
  const PreGradient& dpre_;
  int64_t width_, tiles_, blocks_, slab_rows_;
  float* x_;     // [blocks, slab_rows, kInputs]
  float* d_;     // [tiles, kFrames, width]
  float* sums_;  // [pieces, kInputs, width]
};

// The same by products of 16-bit numbers: what an output row reads lies side by side in x.
void narrow_weight_gradient(Context& ctx, const Conv& conv, const PreGradient& dpre, Grad dweight) {
  constexpr int64_t kFrames = 2048;  // at a time
  const int64_t C = conv.Cout(), Cin = conv.Cin(), K = conv.taps(), depth = K * Cin;
  const int64_t stride = conv.options.stride, x_rows = conv.x.rows();
  // What reads past x is no valid row: its gradient is zero.
  const int64_t rows = x_rows < K ? 0 : (x_rows - K) / stride + 1;
  const Tensor sums = ctx.temporary({C, depth});
  const cpu::BackwardWeight room = cpu::pack_backward(ctx, Tensor(conv.weight.data, {C, depth}),
                                                      std::min(rows, kFrames), false, true);
  if (ctx.dry) return;
  for (int64_t t = 0; t == 0 || t < rows; t += kFrames) {
    const int64_t frames = std::min(kFrames, rows - t);
    Tensor dy(dpre.row(t), {frames, C}), x(conv.x.f32() + t * stride * Cin, {frames, depth});
    dy.row_stride = dpre.padded, x.row_stride = stride * Cin;
    cpu::matmul_dweight(dy, x, room, {sums, t > 0});
  }
  cpu::parallel_for(C, 8, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; ++o)
      for (int64_t k = 0; k < depth; ++k) {
        float& to = dweight.to.f32()[(o * Cin + k % Cin) * K + k / Cin];
        to = dweight.add ? to + sums.row(o)[k] : sums.row(o)[k];
      }
  });
}

void weight_gradient(Context& ctx, const Conv& conv, const PreGradient& dpre, Grad dweight) {
  ScratchScope scratch(ctx.scratch);
  if (ctx.math != Math::exact) return narrow_weight_gradient(ctx, conv, dpre, dweight);
  WeightGradient gradient(ctx, conv, dpre);
  if (!ctx.dry) gradient.compute(dweight);
}

void input_gradient(Context& ctx, const Conv& conv, const PreGradient& dpre, Grad dx) {
  ScratchScope scratch(ctx.scratch);
  const bool narrow = ctx.math != Math::exact;
  const float* panels = narrow ? nullptr : backward_panels(ctx, conv);
  const int64_t step = whole_tiles(conv.Cin()) + cpu::kProductGap;
  const int64_t stride = conv.options.stride;
  int64_t copied = cpu::kProductCopy;
  for (int64_t p = 0; narrow && p < stride; ++p)
    copied = std::max(copied, cpu::narrow::chunk_floats(phase_of(conv, p).taps * dpre.padded));
  const cpu::ThreadScratch threads(ctx, copied + cpu::kProductRows * step);
  for (int64_t p = 0; p < stride; ++p) {
    ScratchScope inner(ctx.scratch);
    PhaseWeight weight{phase_of(conv, p), nullptr, {}};
    if (narrow)
      weight.narrow = backward_narrow(ctx, conv, weight.phase);
    else
      weight.panels = panels + weight.phase.offset;
    if (!ctx.dry) phase_gradient(conv, dpre, weight, threads, copied, dx);
  }
}

}  // namespace

void conv_strided_backward(Context& ctx, Tensor dy, Tensor x, Tensor weight, Tensor norm_weight,
                           Tensor norm_bias, Tensor pre, Tensor mean, Tensor rstd,
                           const ConvStrided& options, Slots slots, Grad dx, Grad dweight,
                           Grad dbias, Grad dnorm_weight, Grad dnorm_bias) {
  const Conv conv{x, weight, {}, norm_weight, norm_bias, options, slots};
  check(conv);
  const int64_t C = conv.Cout(), padded = whole_tiles(C);
  ProfileScope profile(ctx.dry ? nullptr : ctx.profile, "conv_strided.backward", 2 * conv.flops(),
                       4.0 * (2 * x.count() + 2 * conv.rows() * C));
  if (ctx.device == Device::cuda)
    return cuda::conv_strided_backward(ctx, dy, x, weight, norm_weight, norm_bias, pre, mean, rstd,
                                       options, slots, dx, dweight, dbias, dnorm_weight,
                                       dnorm_bias);
  ScratchScope scratch(ctx.scratch);
  const int64_t lead = (conv.taps() + options.stride - 1) / options.stride - 1;
  const int64_t count = (lead + conv.rows()) * padded;
  const PreGradient dpre{ctx.temporary({count}).f32(), lead, padded};
  const auto chunks =
      cpu::row_chunks(ctx, slots.batch(), 2 * kInputs, [&](int b) { return conv.valid(b); });
  const auto chunk_count = static_cast<int64_t>(chunks.size());
  float* partial = ctx.temporary({chunk_count * 3 * C}).f32();
  if (!ctx.dry) {
    unfinish(conv, dy, {.pre = pre, .mean = mean, .rstd = rstd}, dpre, chunks, partial);
    sum_partials(partial, chunk_count, C, 0, dnorm_weight);
    sum_partials(partial, chunk_count, C, 1, dnorm_bias);
    sum_partials(partial, chunk_count, C, 2, dbias);
  }
  if (dx) input_gradient(ctx, conv, dpre, dx);
  if (dweight) weight_gradient(ctx, conv, dpre, dweight);
}

}  // namespace sft
#endif
