#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/pos_conv.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include <algorithm>
#include <cstring>

#include "engine/cpu/conv_tile-inl.h"
#include "engine/cpu/vector_math-inl.h"
#include "engine/ops/pos_conv.h"

#ifndef SFT_POS_CONV_TYPES
#define SFT_POS_CONV_TYPES
namespace sft::pos {

constexpr int32_t kRows = 96;     // of a chunk: whole tiles of every shape
constexpr int64_t kTaps = 16;     // of the sum at a time: their panels stay in the L2 cache
constexpr int64_t kGap = 16;      // zero frames between utterances, at least the rows of a tile
constexpr int64_t kMaxTile = 48;  // columns of a tile at most

// One group of a convolution over frames: out[t] = sum_j W[j] x[t + j - left].
struct Group {
  const float* x;  // [channels, step]: frame by frame, channel after channel
  int64_t step, channels, taps, left;
  const float* panels;  // [tiles of columns][taps][channels][columns of a tile]
};

}  // namespace sft::pos
#endif

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

// Vectors in a tile: three where that divides them (48 channels are three of AVX-512's), else two.
int pos_vectors(int64_t channels) { return (channels + lanes() - 1) / lanes() % 3 == 0 ? 3 : 2; }
int64_t pos_columns(int64_t channels) { return pos_vectors(channels) * lanes(); }
int64_t pos_tile_rows(int64_t channels) {
  return pos_vectors(channels) == 3 ? kConvTileRows<3> : kConvTileRows<2>;
}

// sums [kRows, columns of a tile] of frames [first, first + rows) of an utterance of `frames`,
// whose frame 0 is x[0]; tile of columns `tile_index`.
template <int kVectors>
void pos_tile_rows_of(const pos::Group& g, int64_t frames, int64_t first, int64_t rows,
                      int64_t tile_index, float* sums) {
  constexpr int kTile = kConvTileRows<kVectors>;
  const int64_t width = kVectors * lanes();
  const float* panel = g.panels + tile_index * g.taps * g.channels * width;
  std::memset(sums, 0, pos::kRows * width * sizeof(float));
  for (int64_t block = 0; block < g.taps; block += pos::kTaps)
    for (int64_t r = 0; r < rows; r += kTile) {
      const int64_t t = first + r;  // taps outside [low, high) meet only zero frames
      const int64_t low = std::max(block, g.left - t - kTile + 1);
      const int64_t high = std::min({block + pos::kTaps, g.taps, g.left + frames - t});
      if (low >= high) continue;
      conv_tile<kVectors, 1>(g.x + t + low - g.left, panel + low * g.channels * width,
                             {high - low, g.channels, 1, g.step, width}, sums + r * width, width,
                             false);
    }
}

void pos_rows(const pos::Group& g, int64_t frames, int64_t first, int64_t rows, int64_t tile_index,
              float* sums) {
  if (pos_vectors(g.channels) == 3)
    pos_tile_rows_of<3>(g, frames, first, rows, tile_index, sums);
  else
    pos_tile_rows_of<2>(g, frames, first, rows, tile_index, sums);
}

// y = x + GELU(sums + bias) of one row of a group; pre may be null. x null: y = sums + bias.
void pos_finish(const float* sums, const float* x, const float* bias, int64_t n, float* pre,
                float* y) {
  for_vectors(n, [&](int64_t i, int64_t m) {
    const Vec v = hn::Add(load(sums + i, m), load(bias + i, m));
    if (pre) store(v, pre + i, m);
    store(x ? hn::Add(load(x + i, m), gelu(v)) : v, y + i, m);
  });
}

void pos_unfinish(const float* dy, const float* pre, int64_t n, float* dpre) {
  for_vectors(n, [&](int64_t i, int64_t m) {
    store(hn::Mul(load(dy + i, m), gelu_slope(load(pre + i, m))), dpre + i, m);
  });
}

// dx = dy + sums, or dx += dy + sums; dy may be null.
void pos_add(const float* sums, const float* dy, int64_t n, bool add, float* dx) {
  for_vectors(n, [&](int64_t i, int64_t m) {
    const Vec v = dy ? hn::Add(load(sums + i, m), load(dy + i, m)) : load(sums + i, m);
    store(add ? hn::Add(load(dx + i, m), v) : v, dx + i, m);
  });
}

// sums [rows of a tile, columns] += sum over `frames` of x[t][r] d[t][c].
void pos_outer(const float* x, int64_t x_step, const float* d, int64_t d_step, int64_t frames,
               int64_t channels, float* sums) {
  const bool three = pos_vectors(channels) == 3;
  for (int64_t c = 0; c < d_step; c += pos_columns(channels))
    if (three)
      conv_tile<3, 1>(x, d + c, {1, frames, 0, x_step, d_step}, sums + c, d_step, false);
    else
      conv_tile<2, 1>(x, d + c, {1, frames, 0, x_step, d_step}, sums + c, d_step, false);
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "engine/cpu/conv_row.h"

namespace sft {
namespace {

using namespace pos;

HWY_EXPORT(pos_columns);
HWY_EXPORT(pos_tile_rows);
HWY_EXPORT(pos_rows);
HWY_EXPORT(pos_finish);
HWY_EXPORT(pos_unfinish);
HWY_EXPORT(pos_add);
HWY_EXPORT(pos_outer);

// One call of the op.
struct Conv {
  Tensor weight;
  int64_t groups, T;
  Segments segments;

  int64_t C() const { return weight.shape[0]; }
  int64_t channels() const { return weight.shape[1]; }  // of a group
  int64_t taps() const { return weight.shape[2]; }
  int64_t columns() const { return HWY_DYNAMIC_DISPATCH(pos_columns)(channels()); }  // of a tile
  int64_t tiles() const { return (channels() + columns() - 1) / columns(); }
  int64_t panel_floats() const { return tiles() * columns() * channels() * taps(); }  // of a group
  int64_t place(int b) const { return segments.starts[b] + (b + 1) * kGap; }
  // Of a channel's frames: an odd number of cache lines, so that channels lie in different sets.
  int64_t step() const { return (((T + (segments.batch() + 1) * kGap + 15) / 16) | 1) * 16; }
  double flops() const { return 2.0 * T * C() * channels() * taps(); }
};

Conv checked(Tensor x, Tensor weight, int groups, Segments segments) {
  const int64_t C = x.width();
  CHECK(weight.shape.rank() == 3 && groups >= 1 && weight.shape[0] == C &&
            weight.shape[1] * groups == C && x.shape == (Shape{segments.total(), C}),
        "pos_conv: weight is {}, {} groups, x {}, {} frames", weight.shape, groups, x.shape,
        segments.total());
  return {weight, groups, segments.total(), segments};
}

// out [C, step] = x [T, C] turned, with zero frames around each utterance.
void turn(const Conv& conv, Tensor x, float* out) {
  const int64_t step = conv.step();
  cpu::parallel_for(conv.C(), 16, [&](int64_t begin, int64_t end) {
    std::memset(out + begin * step, 0, (end - begin) * step * sizeof(float));
    for (int b = 0; b < conv.segments.batch(); ++b) {
      const int64_t start = conv.segments.starts[b], frames = conv.segments.length(b);
      for (int64_t t0 = 0; t0 < frames; t0 += 16)  // a square of cache lines
        for (int64_t c = begin; c < end; ++c)
          for (int64_t t = t0; t < std::min(t0 + 16, frames); ++t)
            out[c * step + conv.place(b) + t] = x.row(start + t)[c];
    }
  });
}

// The panels of one tile of columns of one group, from `w` of the group. For dx, rows and columns
// of each tap change places and the taps are in reverse:
//   dx[t] = sum_j W[K - 1 - j]^T dpre[t + j - (K - 1 - K / 2)].
void pack_tile(const Conv& conv, const float* w, int64_t tile, bool for_dx, float* out) {
  const int64_t channels = conv.channels(), K = conv.taps(), width = conv.columns();
  std::memset(out, 0, K * channels * width * sizeof(float));
  for (int64_t row = 0; row < channels; ++row)
    for (int64_t j0 = 0; j0 < K; j0 += 16)  // a cache line of each weight at a time
      for (int64_t c = 0; c < std::min(width, channels - tile * width); ++c) {
        const int64_t column = tile * width + c;
        const float* taps = w + (for_dx ? row * channels + column : column * channels + row) * K;
        for (int64_t j = j0; j < std::min(j0 + 16, K); ++j)
          out[(j * channels + row) * width + c] = taps[for_dx ? K - 1 - j : j];
      }
}

const float* panels_of(Context& ctx, const Conv& conv, bool for_dx) {
  const int64_t floats = conv.panel_floats(), tiles = conv.tiles();
  const int64_t group = conv.weight.count() / conv.groups;
  const uint32_t kind = for_dx ? fnv1a("pos_conv.dx.panels") : fnv1a("pos_conv.panels");
  return derived(ctx, conv.weight.data, kind, conv.groups * floats, [&](float* out) {
    cpu::parallel_for(conv.groups * tiles, 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        pack_tile(conv, conv.weight.f32() + i / tiles * group, i % tiles, for_dx,
                  out + i * (floats / tiles));
    });
  });
}

std::span<const cpu::RowChunk> chunks_of(Context& ctx, const Conv& conv) {
  return cpu::row_chunks(ctx, conv.segments.batch(), kRows,
                         [&](int b) { return conv.segments.length(b); });
}

// finish(frame, channel, columns, sums) for each row of each tile of columns of the convolution.
template <class Finish>
void convolve(const Conv& conv, const float* turned, const float* panels, int64_t left,
              std::span<const cpu::RowChunk> chunks, Finish&& finish) {
  const int64_t channels = conv.channels(), columns = conv.columns(), step = conv.step();
  const auto count = static_cast<int64_t>(chunks.size());
  // Group after group, so that a thread's panels stay in its cache.
  cpu::parallel_for(conv.groups * count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t g = item / count;
      const cpu::RowChunk& chunk = chunks[item % count];
      const Group group{turned + g * channels * step + conv.place(chunk.utterance),
                        step,
                        channels,
                        conv.taps(),
                        left,
                        panels + g * conv.panel_floats()};
      const int64_t frame = conv.segments.starts[chunk.utterance] + chunk.first;
      for (int64_t tile = 0; tile < conv.tiles(); ++tile) {
        alignas(64) float sums[kRows * kMaxTile];
        HWY_DYNAMIC_DISPATCH(pos_rows)
        (group, conv.segments.length(chunk.utterance), chunk.first, chunk.rows, tile, sums);
        const int64_t first = tile * columns, n = std::min(columns, channels - first);
        for (int64_t r = 0; r < chunk.rows; ++r)
          finish(frame + r, g * channels + first, n, sums + r * columns);
      }
    }
  });
}

}  // namespace

PosConvOut pos_conv_forward(Context& ctx, Tensor x, Tensor weight, Tensor bias, int groups,
                            Segments segments, PosConv kind, bool keep) {
  const Conv conv = checked(x, weight, groups, segments);
  const int64_t C = conv.C();
  CHECK(bias.shape == Shape{C}, "pos_conv: bias is {}, x {}", bias.shape, x.shape);
  CHECK(kind == PosConv::residual || !keep, "pos_conv: of a convolution alone nothing is kept");
  PosConvOut out{.y = ctx.activation(x.shape, x.dtype)};
  if (keep) out.pre = ctx.activation(x.shape, x.dtype);
  ProfileScope profile(ctx.dry ? nullptr : ctx.profile, "pos_conv", conv.flops(), 8.0 * conv.T * C);
  if (ctx.device == Device::cuda)
    return cuda::pos_conv_forward(ctx, x, weight, bias, groups, segments, kind, out), out;
  ScratchScope scratch(ctx.scratch);
  const float* panels = panels_of(ctx, conv, false);
  float* turned = ctx.temporary({C * conv.step()}).f32();
  const auto chunks = chunks_of(ctx, conv);
  if (ctx.dry) return out;
  turn(conv, x, turned);
  convolve(conv, turned, panels, conv.taps() / 2, chunks,
           [&](int64_t t, int64_t c, int64_t n, const float* sums) {
             float* pre = keep ? out.pre.row(t) + c : nullptr;
             const float* residual = kind == PosConv::residual ? x.row(t) + c : nullptr;
             HWY_DYNAMIC_DISPATCH(pos_finish)
             (sums, residual, bias.f32() + c, n, pre, out.y.row(t) + c);
           });
  return out;
}

namespace {

// [groups][T][width]: each group's channels of x side by side, zeros behind them.
void split_groups(const Conv& conv, Tensor x, int64_t width, float* out) {
  const int64_t channels = conv.channels();
  cpu::parallel_for(conv.T, 64, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t g = 0; g < conv.groups; ++g) {
        float* to = out + (g * conv.T + t) * width;
        std::memcpy(to, x.row(t) + g * channels, channels * sizeof(float));
        std::memset(to + channels, 0, (width - channels) * sizeof(float));
      }
  });
}

// What the weight gradient reads and its scratch.
struct WeightGradient {
  const float* x;     // [groups][T][x_width]
  const float* dpre;  // [groups][T][d_width]
  int64_t x_width, d_width, tile_rows;
};

// dweight of one group and tile_rows input channels from i0 on; sums [taps, tile_rows, d_width].
void weight_gradient_piece(const Conv& conv, const WeightGradient& in, int64_t g, int64_t i0,
                           float* sums, Grad dweight) {
  const int64_t K = conv.taps(), left = K / 2, channels = conv.channels();
  const int64_t size = in.tile_rows * in.d_width;
  std::memset(sums, 0, K * size * sizeof(float));
  for (int b = 0; b < conv.segments.batch(); ++b) {
    const int64_t frames = conv.segments.length(b), base = g * conv.T + conv.segments.starts[b];
    for (int64_t j = 0; j < K; ++j) {
      const int64_t first = std::max<int64_t>(0, left - j),
                    last = std::min(frames, frames + left - j);
      if (first >= last) continue;
      HWY_DYNAMIC_DISPATCH(pos_outer)
      (in.x + (base + first + j - left) * in.x_width + i0, in.x_width,
       in.dpre + (base + first) * in.d_width, in.d_width, last - first, channels, sums + j * size);
    }
  }
  for (int64_t o = 0; o < channels; ++o)
    for (int64_t i = 0; i < std::min(in.tile_rows, channels - i0); ++i) {
      float* to = dweight.to.f32() + ((g * channels + o) * channels + i0 + i) * K;
      const float* from = sums + i * in.d_width + o;
      for (int64_t j = 0; j < K; ++j) to[j] = dweight.add ? to[j] + from[j * size] : from[j * size];
    }
}

void weight_gradient(Context& ctx, const Conv& conv, Tensor x, Tensor dpre, Grad dweight) {
  const int64_t rows = HWY_DYNAMIC_DISPATCH(pos_tile_rows)(conv.channels());
  const int64_t pieces = (conv.channels() + rows - 1) / rows;
  const int64_t x_width = pieces * rows, d_width = conv.tiles() * conv.columns();
  ScratchScope scratch(ctx.scratch);
  float* xs = ctx.temporary({conv.groups * conv.T * x_width}).f32();
  float* ds = ctx.temporary({conv.groups * conv.T * d_width}).f32();
  const cpu::ThreadScratch threads(ctx, conv.taps() * rows * d_width);
  if (ctx.dry) return;
  split_groups(conv, x, x_width, xs);
  split_groups(conv, dpre, d_width, ds);
  const WeightGradient in{xs, ds, x_width, d_width, rows};
  cpu::parallel_for(conv.groups * pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece)
      weight_gradient_piece(conv, in, piece / pieces, piece % pieces * rows, threads.mine(),
                            dweight);
  });
}

void bias_gradient(Tensor dpre, Grad dbias) {
  cpu::parallel_for(dpre.width(), 64, [&](int64_t begin, int64_t end) {
    double sums[64] = {};
    for (int64_t t = 0; t < dpre.rows(); ++t)
      for (int64_t c = begin; c < end; ++c) sums[c - begin] += dpre.row(t)[c];
    for (int64_t c = begin; c < end; ++c) {
      float& to = dbias.to.f32()[c];
      to = static_cast<float>(dbias.add ? to + sums[c - begin] : sums[c - begin]);
    }
  });
}

// residual: dy, or empty.
void input_gradient(Context& ctx, const Conv& conv, Tensor residual, Tensor dpre, Grad dx) {
  ScratchScope scratch(ctx.scratch);
  const float* panels = panels_of(ctx, conv, true);
  float* turned = ctx.temporary({conv.C() * conv.step()}).f32();
  const auto chunks = chunks_of(ctx, conv);
  if (ctx.dry) return;
  turn(conv, dpre, turned);
  convolve(conv, turned, panels, conv.taps() - 1 - conv.taps() / 2, chunks,
           [&](int64_t t, int64_t c, int64_t n, const float* sums) {
             const float* dy = residual ? residual.row(t) + c : nullptr;
             HWY_DYNAMIC_DISPATCH(pos_add)(sums, dy, n, dx.add, dx.to.row(t) + c);
           });
}

}  // namespace

void pos_conv_backward(Context& ctx, Tensor dy, Tensor x, Tensor weight, Tensor pre, int groups,
                       Segments segments, Grad dx, Grad dweight, Grad dbias) {
  const Conv conv = checked(x, weight, groups, segments);
  ProfileScope profile(ctx.dry ? nullptr : ctx.profile, "pos_conv.backward", 2 * conv.flops(),
                       16.0 * x.count());
  if (ctx.device == Device::cuda)
    return cuda::pos_conv_backward(ctx, dy, x, weight, pre, groups, segments, dx, dweight, dbias);
  ScratchScope scratch(ctx.scratch);
  const Tensor dpre = pre ? ctx.temporary(x.shape) : dy;
  if (pre && !ctx.dry)
    cpu::parallel_for(conv.T, 64, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        HWY_DYNAMIC_DISPATCH(pos_unfinish)(dy.row(t), pre.row(t), conv.C(), dpre.row(t));
    });
  if (dbias && !ctx.dry) bias_gradient(dpre, dbias);
  if (dweight) weight_gradient(ctx, conv, x, dpre, dweight);
  if (dx) input_gradient(ctx, conv, pre ? dy : Tensor(), dpre, dx);
}

}  // namespace sft
#endif
