#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/pos_conv.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include <algorithm>
#include <cstring>

#include "engine/cpu/pos_conv-inl.h"
#include "engine/ops/pos_conv.h"

#if HWY_ONCE
#include "engine/cpu/conv_row.h"

namespace sft {
namespace {

using namespace pos;

HWY_EXPORT(pos_columns);
HWY_EXPORT(pos_tile_rows);
HWY_EXPORT(pos_rows);
HWY_EXPORT(pos_narrow_rows);
HWY_EXPORT(pos_pack_window);
HWY_EXPORT(pos_pack_panel);
HWY_EXPORT(pos_pack_frames);
HWY_EXPORT(pos_narrow_tile_rows);
HWY_EXPORT(pos_narrow_outer);
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
  int64_t tile_words() const {  // of a tile of columns, in fast16
    const int64_t words = frame_words(channels());
    return blocks_of(taps(), words) * block_taps(words) * words * columns();
  }
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

// The panels of one tile of columns of one group, from `w` of the group: [taps][rows][columns],
// rows behind the channels zero. For dx, rows and columns of each tap change places and the taps
// are in reverse:
//   dx[t] = sum_j W[K - 1 - j]^T dpre[t + j - (K - 1 - K / 2)].
void pack_tile(const Conv& conv, const float* w, int64_t tile, bool for_dx, int64_t rows,
               float* out) {
  const int64_t channels = conv.channels(), K = conv.taps(), width = conv.columns();
  std::memset(out, 0, K * rows * width * sizeof(float));
  for (int64_t row = 0; row < channels; ++row)
    for (int64_t j0 = 0; j0 < K; j0 += 16)  // a cache line of each weight at a time
      for (int64_t c = 0; c < std::min(width, channels - tile * width); ++c) {
        const int64_t column = tile * width + c;
        const float* taps = w + (for_dx ? row * channels + column : column * channels + row) * K;
        for (int64_t j = j0; j < std::min(j0 + 16, K); ++j)
          out[(j * rows + row) * width + c] = taps[for_dx ? K - 1 - j : j];
      }
}

// f(tile of all groups' tiles, weights of its group, tile of its group).
template <class F>
void for_tiles(const Conv& conv, F&& f) {
  const int64_t tiles = conv.tiles(), group = conv.weight.count() / conv.groups;
  cpu::parallel_for(conv.groups * tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i, conv.weight.f32() + i / tiles * group, i % tiles);
  });
}

const float* panels_of(Context& ctx, const Conv& conv, bool for_dx) {
  const int64_t floats = conv.panel_floats(), tiles = conv.tiles();
  const uint32_t kind = for_dx ? fnv1a("pos_conv.dx.panels") : fnv1a("pos_conv.panels");
  return derived(ctx, conv.weight.data, kind, conv.groups * floats, [&](float* out) {
    for_tiles(conv, [&](int64_t i, const float* w, int64_t tile) {
      pack_tile(conv, w, tile, for_dx, conv.channels(), out + i * (floats / tiles));
    });
  });
}

// Of all groups: words, then scales.
const int32_t* narrow_panels_of(Context& ctx, const Conv& conv, bool for_dx) {
  const int64_t K = conv.taps(), words = frame_words(conv.channels()), columns = conv.columns();
  const int64_t all = conv.groups * conv.tiles(), size = conv.tile_words();
  const uint32_t kind = for_dx ? fnv1a("pos_conv.dx.fast16") : fnv1a("pos_conv.fast16");
  const cpu::ThreadScratch threads(ctx, K * 2 * words * columns);
  const int64_t scales = blocks_of(K, words) * columns;
  return derived<int32_t>(ctx, conv.weight.data, kind, all * (size + scales), [&](int32_t* out) {
    auto* to_scales = reinterpret_cast<float*>(out + all * size);
    for_tiles(conv, [&](int64_t i, const float* w, int64_t tile) {
      pack_tile(conv, w, tile, for_dx, 2 * words, threads.mine());
      HWY_DYNAMIC_DISPATCH(pos_pack_panel)
      (threads.mine(), K, words, columns, out + i * size, to_scales + i * scales);
    });
  });
}

std::span<const cpu::RowChunk> chunks_of(Context& ctx, const Conv& conv) {
  return cpu::row_chunks(ctx, conv.segments.batch(), kRows,
                         [&](int b) { return conv.segments.length(b); });
}

// A convolution of x, left taps before each frame: in f32, or in fast16.
class Convolution {
 public:
  // for_dx: with the weights that take dpre to dx.
  Convolution(Context& ctx, const Conv& conv, Tensor x, bool for_dx)
      : conv_(conv),
        x_(x),
        left_(for_dx ? conv.taps() - 1 - conv.taps() / 2 : conv.taps() / 2),
        words_(ctx.math == Math::fast16 ? frame_words(conv.channels()) : 0),
        window_frames_(kRows + blocks_of(conv.taps(), std::max<int64_t>(words_, 1)) *
                                   block_taps(std::max<int64_t>(words_, 1))),
        windows_(ctx, window_frames_ * words_),
        panels_(words_ ? nullptr : panels_of(ctx, conv, for_dx)),
        narrow_panels_(words_ ? narrow_panels_of(ctx, conv, for_dx) : nullptr),
        turned_(words_ ? nullptr : ctx.temporary({conv.C() * conv.step()}).f32()),
        chunks_(chunks_of(ctx, conv)) {
    if (turned_ && !ctx.dry) turn(conv, x, turned_);
  }

  // finish(frame, channel, columns, sums) for each row of each tile of columns.
  template <class Finish>
  void run(Finish&& finish) const {
    const auto count = static_cast<int64_t>(chunks_.size());
    // Group after group, so that a thread's panels stay in its cache.
    cpu::parallel_for(conv_.groups * count, 1, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item)
        words_ ? narrow(item / count, chunks_[item % count], finish)
               : exact(item / count, chunks_[item % count], finish);
    });
  }

 private:
  template <class Sums, class Finish>
  void for_rows(int64_t g, const cpu::RowChunk& chunk, Sums&& sums_of, Finish&& finish) const {
    const int64_t columns = conv_.columns(), channels = conv_.channels();
    const int64_t frame = conv_.segments.starts[chunk.utterance] + chunk.first;
    for (int64_t tile = 0; tile < conv_.tiles(); ++tile) {
      alignas(64) float sums[kRows * kMaxTile];
      sums_of(tile, sums);
      const int64_t first = tile * columns, n = std::min(columns, channels - first);
      for (int64_t r = 0; r < chunk.rows; ++r)
        finish(frame + r, g * channels + first, n, sums + r * columns);
    }
  }

  template <class Finish>
  void exact(int64_t g, const cpu::RowChunk& chunk, Finish&& finish) const {
    const int64_t channels = conv_.channels(), step = conv_.step();
    const Group group{turned_ + g * channels * step + conv_.place(chunk.utterance),
                      step,
                      channels,
                      conv_.taps(),
                      left_,
                      panels_ + g * conv_.panel_floats()};
    const auto sums_of = [&](int64_t tile, float* sums) {
      HWY_DYNAMIC_DISPATCH(pos_rows)
      (group, conv_.segments.length(chunk.utterance), chunk.first, chunk.rows, tile, sums);
    };
    for_rows(g, chunk, sums_of, finish);
  }

  template <class Finish>
  void narrow(int64_t g, const cpu::RowChunk& chunk, Finish&& finish) const {
    const int64_t channels = conv_.channels(), tiles = conv_.tiles(), size = conv_.tile_words();
    const int64_t frames = conv_.segments.length(chunk.utterance);
    auto* window = reinterpret_cast<int32_t*>(windows_.mine());
    const float* x = x_.row(conv_.segments.starts[chunk.utterance]) + g * channels;
    const float scale = HWY_DYNAMIC_DISPATCH(pos_pack_window)(
        x, x_.row_stride, frames, channels, chunk.first - left_, window_frames_, words_, window);
    const auto* scales =
        reinterpret_cast<const float*>(narrow_panels_ + conv_.groups * tiles * size);
    const NarrowGroup group{window,
                            scale,
                            words_,
                            conv_.taps(),
                            left_,
                            narrow_panels_ + g * tiles * size,
                            scales + g * tiles * blocks_of(conv_.taps(), words_) * conv_.columns()};
    const auto sums_of = [&](int64_t tile, float* sums) {
      HWY_DYNAMIC_DISPATCH(pos_narrow_rows)
      (group, channels, frames, chunk.first, chunk.rows, tile, sums);
    };
    for_rows(g, chunk, sums_of, finish);
  }

  const Conv& conv_;
  Tensor x_;
  int64_t left_, words_, window_frames_;  // words of a frame; 0: f32
  cpu::ThreadScratch windows_;
  const float* panels_;
  const int32_t* narrow_panels_;
  float* turned_;
  std::span<const cpu::RowChunk> chunks_;
};

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
  const Convolution convolution(ctx, conv, x, false);
  if (ctx.dry) return out;
  convolution.run([&](int64_t t, int64_t c, int64_t n, const float* sums) {
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

// Sums [taps, size] of one group and tile_rows input channels from i0 on -> dweight.
struct WeightTile {
  int64_t g, i0, tile_rows, d_width;

  // [tile_rows, d_width] and a gap: an odd number of cache lines, so that taps lie in different
  // sets.
  int64_t size() const { return tile_rows * d_width + 16; }
  void write(const Conv& conv, const float* sums, const Grad& dweight) const {
    const int64_t K = conv.taps(), channels = conv.channels();
    for (int64_t i = 0; i < std::min(tile_rows, channels - i0); ++i)
      for (int64_t o = 0; o < channels; ++o) {
        float* to = dweight.to.f32() + ((g * channels + o) * channels + i0 + i) * K;
        const float* from = sums + i * d_width + o;
        for (int64_t j = 0; j < K; ++j)
          to[j] = dweight.add ? to[j] + from[j * size()] : from[j * size()];
      }
  }
};

// f(first, frames, shift) for the frames of dpre that tap j takes to frames of x, shift later.
template <class F>
void for_overlaps(const Conv& conv, int64_t j, int b, F&& f) {
  const int64_t frames = conv.segments.length(b), shift = j - conv.taps() / 2;
  const int64_t first = std::max<int64_t>(0, -shift), last = std::min(frames, frames - shift);
  if (first < last) f(first, last - first, shift);
}

// In f32.
class WeightGradient {
 public:
  WeightGradient(Context& ctx, const Conv& conv, int64_t x_width, int64_t d_width)
      : x_width_(x_width),
        d_width_(d_width),
        x_(ctx.temporary({conv.groups * conv.T * x_width}).f32()),
        dpre_(ctx.temporary({conv.groups * conv.T * d_width}).f32()) {}

  void pack(const Conv& conv, Tensor x, Tensor dpre) {
    split_groups(conv, x, x_width_, x_);
    split_groups(conv, dpre, d_width_, dpre_);
  }

  void add(const Conv& conv, const WeightTile& tile, int b, int64_t j, float* sums) const {
    const int64_t base = tile.g * conv.T + conv.segments.starts[b];
    for_overlaps(conv, j, b, [&](int64_t first, int64_t frames, int64_t shift) {
      HWY_DYNAMIC_DISPATCH(pos_outer)
      (x_ + (base + first + shift) * x_width_ + tile.i0, x_width_,
       dpre_ + (base + first) * d_width_, d_width_, frames, conv.channels(), sums);
    });
  }

 private:
  int64_t x_width_, d_width_;
  float* x_;     // [groups][T][x_width]
  float* dpre_;  // [groups][T][d_width]
};

// In fast16: pairs of frames; a channel of an utterance has one scale.
class NarrowWeightGradient {
 public:
  NarrowWeightGradient(Context& ctx, const Conv& conv, int64_t x_width, int64_t d_width)
      : pairs_(conv.T / 2 + 2 * conv.segments.batch()),
        x_width_(x_width),
        d_width_(d_width),
        even_(words(ctx, conv.groups * pairs_ * x_width)),
        odd_(words(ctx, conv.groups * pairs_ * x_width)),
        dpre_(words(ctx, conv.groups * pairs_ * d_width)),
        x_scales_(ctx.temporary({conv.groups * conv.segments.batch() * x_width}).f32()),
        d_scales_(ctx.temporary({conv.groups * conv.segments.batch() * d_width}).f32()) {}

  void pack(const Conv& conv, Tensor x, Tensor dpre) {
    const int64_t batch = conv.segments.batch(), channels = conv.channels();
    cpu::parallel_for(conv.groups * batch, 1, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const int64_t g = item / batch, at = place(conv, g, item % batch);
        const int64_t start = conv.segments.starts[item % batch];
        const int64_t frames = conv.segments.length(static_cast<int>(item % batch));
        HWY_DYNAMIC_DISPATCH(pos_pack_frames)
        (x.row(start) + g * channels, x.row_stride, frames, channels, x_width_,
         even_ + at * x_width_, odd_ + at * x_width_, x_scales_ + item * x_width_);
        HWY_DYNAMIC_DISPATCH(pos_pack_frames)
        (dpre.row(start) + g * channels, dpre.row_stride, frames, channels, d_width_,
         dpre_ + at * d_width_, nullptr, d_scales_ + item * d_width_);
      }
    });
  }

  void add(const Conv& conv, const WeightTile& tile, int b, int64_t j, float* sums) const {
    const int64_t at = place(conv, tile.g, b), item = tile.g * conv.segments.batch() + b;
    for_overlaps(conv, j, b, [&](int64_t first, int64_t frames, int64_t shift) {
      // Pairs of dpre begin at even frames.
      const int64_t begin = first / 2, end = (first + frames + 1) / 2;
      const int32_t* x = shift % 2 ? odd_ + (at + begin + (shift + 1) / 2) * x_width_
                                   : even_ + (at + begin + shift / 2) * x_width_;
      HWY_DYNAMIC_DISPATCH(pos_narrow_outer)
      (x + tile.i0, x_scales_ + item * x_width_ + tile.i0, x_width_,
       dpre_ + (at + begin) * d_width_, d_scales_ + item * d_width_, d_width_, end - begin,
       conv.channels(), sums);
    });
  }

 private:
  static int32_t* words(Context& ctx, int64_t count) {
    return static_cast<int32_t*>(ctx.scratch.take(count * static_cast<int64_t>(sizeof(int32_t))));
  }
  int64_t place(const Conv& conv, int64_t g, int64_t b) const {
    return g * pairs_ + conv.segments.starts[b] / 2 + 2 * b;
  }

  int64_t pairs_, x_width_, d_width_;
  int32_t *even_, *odd_;  // [groups][pairs][x_width]
  int32_t* dpre_;         // [groups][pairs][d_width]
  float *x_scales_, *d_scales_;
};

template <class Work>
void weight_gradient(Context& ctx, const Conv& conv, Tensor x, Tensor dpre, int64_t rows,
                     const Grad& dweight) {
  const int64_t pieces = (conv.channels() + rows - 1) / rows;
  const int64_t d_width = conv.tiles() * conv.columns();
  ScratchScope scratch(ctx.scratch);
  Work work(ctx, conv, pieces * rows, d_width);
  const cpu::ThreadScratch threads(ctx, conv.taps() * WeightTile{0, 0, rows, d_width}.size());
  if (ctx.dry) return;
  work.pack(conv, x, dpre);
  cpu::parallel_for(conv.groups * pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t piece = begin; piece < end; ++piece) {
      const WeightTile tile{piece / pieces, piece % pieces * rows, rows, d_width};
      float* sums = threads.mine();
      std::memset(sums, 0, conv.taps() * tile.size() * sizeof(float));
      for (int b = 0; b < conv.segments.batch(); ++b)
        for (int64_t j = 0; j < conv.taps(); ++j)
          work.add(conv, tile, b, j, sums + j * tile.size());
      tile.write(conv, sums, dweight);
    }
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
  const Convolution convolution(ctx, conv, dpre, true);
  if (ctx.dry) return;
  convolution.run([&](int64_t t, int64_t c, int64_t n, const float* sums) {
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
  const bool narrow = ctx.math == Math::fast16;
  if (pre && !ctx.dry)
    cpu::parallel_for(conv.T, 64, [&](int64_t begin, int64_t end) {
      for (int64_t t = begin; t < end; ++t)
        HWY_DYNAMIC_DISPATCH(pos_unfinish)(dy.row(t), pre.row(t), conv.C(), dpre.row(t));
    });
  if (dbias && !ctx.dry) bias_gradient(dpre, dbias);
  if (dweight && narrow)
    weight_gradient<NarrowWeightGradient>(ctx, conv, x, dpre,
                                          HWY_DYNAMIC_DISPATCH(pos_narrow_tile_rows)(), dweight);
  else if (dweight)
    weight_gradient<WeightGradient>(ctx, conv, x, dpre,
                                    HWY_DYNAMIC_DISPATCH(pos_tile_rows)(conv.channels()), dweight);
  if (dx) input_gradient(ctx, conv, pre ? dy : Tensor(), dpre, dx);
}

}  // namespace sft
#endif
