// Tiles of the positional convolution on the CPU (engine/ops/pos_conv.h). Included like simd-inl.h.
#if defined(SFT_POS_CONV_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SFT_POS_CONV_INL_H
#undef SFT_POS_CONV_INL_H
#else
#define SFT_POS_CONV_INL_H
#endif

#include "engine/cpu/conv_tile-inl.h"
#include "engine/cpu/pairs-inl.h"
#include "engine/cpu/pos_conv.h"
#include "engine/cpu/vector_math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {
namespace {

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

#if HWY_TARGET == HWY_AVX3
// As pos_tile_rows_of.
template <int kVectors, int64_t kStep>
void pos_narrow_rows_of(const pos::NarrowGroup& g, int64_t frames, int64_t first, int64_t rows,
                        int64_t tile_index, float* sums) {
  constexpr int64_t width = kVectors * kLanes, taps = pos::block_taps(kStep);
  const Lanes d;
  const int64_t blocks = pos::blocks_of(g.taps, kStep);
  const int32_t* panel = g.panels + tile_index * blocks * taps * kStep * width;
  const float* scales = g.scales + tile_index * blocks * width;
  std::memset(sums, 0, pos::kRows * width * sizeof(float));
  for (int64_t tap = 0; tap < g.taps; tap += taps, panel += taps * kStep * width, scales += width)
    for (int64_t r = 0; r < rows; r += kTileRows) {
      const int64_t t = first + r;
      if (tap + taps <= g.left - t - kTileRows + 1 || tap >= g.left + frames - t) continue;
      tile<Pairs, kStep, kVectors>(g.window + (r + tap) * kStep, 1, panel, width, taps * kStep,
                                   [&](int i, int v, Vec sum) {
                                     float* to = sums + (r + i) * width + v * kLanes;
                                     const Vec scale = hn::LoadU(d, scales + v * kLanes);
                                     hn::StoreU(hn::MulAdd(sum, scale, hn::LoadU(d, to)), d, to);
                                   });
    }
  for (int64_t i = 0; i < rows * width; i += kLanes)
    hn::StoreU(hn::Mul(hn::LoadU(d, sums + i), set(g.scale)), d, sums + i);
}
#endif

void pos_narrow_rows([[maybe_unused]] const pos::NarrowGroup& g, [[maybe_unused]] int64_t channels,
                     [[maybe_unused]] int64_t frames, [[maybe_unused]] int64_t first,
                     [[maybe_unused]] int64_t rows, [[maybe_unused]] int64_t tile_index,
                     [[maybe_unused]] float* sums) {
#if HWY_TARGET == HWY_AVX3
  const bool three = pos_vectors(channels) == 3;
  const auto run = g.words == 24   ? (three ? pos_narrow_rows_of<3, 24> : pos_narrow_rows_of<2, 24>)
                   : g.words == 32 ? pos_narrow_rows_of<2, 32>
                   : g.words == 40 ? pos_narrow_rows_of<2, 40>
                   : three         ? pos_narrow_rows_of<3, 64>
                                   : pos_narrow_rows_of<2, 64>;
  run(g, frames, first, rows, tile_index, sums);
#endif
}

// Frames [first, first + count) of an utterance of `frames`, zeros beside it, whose frame 0 is x[0]
// -> [count][words]; returns their scale.
float pos_pack_window([[maybe_unused]] const float* x, [[maybe_unused]] int64_t step,
                      [[maybe_unused]] int64_t frames, [[maybe_unused]] int64_t channels,
                      [[maybe_unused]] int64_t first, [[maybe_unused]] int64_t count,
                      [[maybe_unused]] int64_t words, [[maybe_unused]] int32_t* to) {
#if HWY_TARGET == HWY_AVX3
  const int64_t begin = std::clamp<int64_t>(-first, 0, count),
                end = std::clamp<int64_t>(frames - first, begin, count);
  const float* from = x + first * step;
  Spread spread;
  for (int64_t t = begin; t < end; ++t)
    for_vectors(channels, [&](int64_t i, int64_t n) { spread.add(load(from + t * step + i, n)); });
  const Vec scale = spread.scale_of_all(pos::kIntegers), inverse = reciprocal(scale);
  std::memset(to, 0, count * words * sizeof(int32_t));
  for (int64_t t = begin; t < end; ++t)
    for_vectors(channels, [&](int64_t i, int64_t n) {
      store_integers(integers(hn::Mul(load(from + t * step + i, n), inverse)), to + t * words, i);
    });
  return hn::GetLane(scale);
#else
  return 0;
#endif
}

// Frames of an utterance as pairs of frames, zeros beside them: even [(frames + 1) / 2][width] are
// frames 2k and 2k + 1, odd [frames / 2 + 1][width] are 2k - 1 and 2k; null: not wanted. scales
// [width] of the channels.
void pos_pack_frames([[maybe_unused]] const float* x, [[maybe_unused]] int64_t step,
                     [[maybe_unused]] int64_t frames, [[maybe_unused]] int64_t channels,
                     [[maybe_unused]] int64_t width, [[maybe_unused]] int32_t* even,
                     [[maybe_unused]] int32_t* odd, [[maybe_unused]] float* scales) {
#if HWY_TARGET == HWY_AVX3
  for (int64_t c = 0; c < width; c += kLanes) {
    const auto frame = [&](int64_t t) {
      return t >= 0 && t < frames && c < channels ? load(x + t * step + c, channels - c) : zero();
    };
    Spread spread;
    for (int64_t t = 0; t < frames; ++t) spread.add(frame(t));
    const Vec scale = spread.scale(pos::kIntegers), inverse = reciprocal(scale);
    store(scale, scales + c, width - c);
    const auto put = [&](int64_t t, int32_t* to) {
      const Pairs::Words low = integers(hn::Mul(frame(t), inverse)),
                         high = integers(hn::Mul(frame(t + 1), inverse));
      store(hn::BitCast(Lanes(), paired(low, high)), reinterpret_cast<float*>(to + c), width - c);
    };
    for (int64_t k = 0; k < (frames + 1) / 2; ++k) put(2 * k, even + k * width);
    for (int64_t k = 0; odd && k < frames / 2 + 1; ++k) put(2 * k - 1, odd + k * width);
  }
#endif
}

int64_t pos_narrow_tile_rows() { return kTileRows; }

#if HWY_TARGET == HWY_AVX3
// Up to 64 pairs: 128 products of 4095^2 are below 2^31. (A bound that g++ 12 could see would make
// it keep the sums in memory.)
template <int kVectors>
HWY_NOINLINE void pos_narrow_outer_of(const int32_t* x, const float* x_scales, int64_t x_width,
                                      const int32_t* d, const float* d_scales, int64_t d_width,
                                      int64_t pairs, float* sums) {
  const Lanes lane;
  for (int64_t c = 0; c < d_width; c += kVectors * kLanes)
    tile<Pairs, 1, kVectors>(x, x_width, d + c, d_width, pairs, [&](int i, int v, Vec sum) {
      const int64_t column = c + v * kLanes;
      const Vec scale = hn::Mul(set(x_scales[i]), hn::LoadU(lane, d_scales + column));
      float* to = sums + i * d_width + column;
      hn::StoreU(hn::MulAdd(sum, scale, hn::LoadU(lane, to)), lane, to);
    });
}
#endif

// sums [kTileRows][d_width] += sum over pairs of frames of x[k][r] d[k][c], times their scales.
void pos_narrow_outer([[maybe_unused]] const int32_t* x, [[maybe_unused]] const float* x_scales,
                      [[maybe_unused]] int64_t x_width, [[maybe_unused]] const int32_t* d,
                      [[maybe_unused]] const float* d_scales, [[maybe_unused]] int64_t d_width,
                      [[maybe_unused]] int64_t pairs, [[maybe_unused]] int64_t channels,
                      [[maybe_unused]] float* sums) {
#if HWY_TARGET == HWY_AVX3
  const auto run = pos_vectors(channels) == 3 ? pos_narrow_outer_of<3> : pos_narrow_outer_of<2>;
  for (int64_t k = 0; k < pairs; k += 64)
    run(x + k * x_width, x_scales, x_width, d + k * d_width, d_scales, d_width,
        std::min<int64_t>(64, pairs - k), sums);
#endif
}

// A tile of columns, [blocks * taps of a block * 2 words][columns] -> its words and scales.
void pos_pack_panel([[maybe_unused]] const float* panel, [[maybe_unused]] int64_t taps,
                    [[maybe_unused]] int64_t words, [[maybe_unused]] int64_t columns,
                    [[maybe_unused]] int32_t* to, [[maybe_unused]] float* scales) {
#if HWY_TARGET == HWY_AVX3
  const int64_t block = pos::block_taps(words) * 2 * words;
  pack_across(panel, columns, taps * 2 * words, columns, 1, integer_limit(block, pos::kIntegers),
              pos::blocks_of(taps, words) * block, columns, block, to, scales);
#endif
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

}  // namespace
}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
