#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/lstm.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include "engine/cpu/simd-inl.h"
#include "engine/cpu/vector_math-inl.h"
#include "engine/ops/lstm.h"

#ifndef SFT_LSTM_SCAN  // once for all instruction sets
#define SFT_LSTM_SCAN
namespace sft {

// One direction of some utterances. Row t of a matrix is frame t of the pack.
struct LstmScan {
  int64_t H;
  bool backwards;                   // in time
  std::span<const int32_t> order;   // the utterances, longest first
  std::span<const int32_t> starts;  // of all utterances
  const float* panels;              // of w_hh, as pack_forward or pack_backward lays it
  const float* bias;                // [4H] b_ih + b_hh
  Tensor gates;                     // [T, 4H]; going forward: products with the input, then gates
  Tensor cells;                     // [T, H]
  Tensor y;                         // [T, H]; going back: dy
  Tensor dgates;                    // [T, 4H] by what the activations were given
  Tensor dcells;                    // [B, H] scratch: what reaches c_(t-1)
  const float* zeros;               // [4H]

  int64_t length(int64_t i) const { return starts[order[i] + 1] - starts[order[i]]; }
  int64_t longest() const { return order.empty() ? 0 : length(0); }
  // Frame of utterance i at a step; the step before is one row up, or down.
  int64_t frame(int64_t i, int64_t step) const {
    return backwards ? starts[order[i] + 1] - 1 - step : starts[order[i]] + step;
  }
};

}  // namespace sft
#endif

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

// Utterances whose sums stay in registers: 4 vectors each, beside a row of the panel.
constexpr int kTileRows = HWY_MAX_BYTES >= 64 ? 6 : 2;

template <int kRows>
struct Sums {
  Vec v[kRows][4];
};

// sums[r] += a[r] (1 x K) panel (K x 4 vectors).
template <int kRows>
HWY_INLINE void multiply(const float* const* a, int64_t K, const float* HWY_RESTRICT panel,
                         Sums<kRows>& sums) {
  const int64_t width = lanes();
  Sums<kRows> s = sums;
  for (int64_t k = 0; k < K; ++k, panel += 4 * width) {
    Vec w[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) w[v] = hn::LoadU(Lanes(), panel + v * width);
#pragma GCC unroll 6
    for (int r = 0; r < kRows; ++r) {
      const Vec value = set(a[r][k]);
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) s.v[r][v] = hn::MulAdd(value, w[v], s.v[r][v]);
    }
  }
  sums = s;
}

// f(rows, first) with rows a constant: whole tiles of [0, count), then the rest.
template <int kRows, class F>
HWY_INLINE void last_tile(int64_t count, int64_t first, F&& f) {
  if constexpr (kRows > 0) {
    if (count == kRows)
      f(std::integral_constant<int, kRows>(), first);
    else
      last_tile<kRows - 1>(count, first, f);
  }
}
template <class F>
HWY_INLINE void for_tiles(int64_t count, F&& f) {
  int64_t i = 0;
  for (; i + kTileRows <= count; i += kTileRows) f(std::integral_constant<int, kTileRows>(), i);
  last_tile<kTileRows - 1>(count - i, i, f);
}

// Panel of the units [j, j + lanes): w_hh transposed, gate beside gate.
void pack_forward(const float* w_hh, int64_t H, float* panels) {
  const int64_t width = lanes();
  for (int64_t j = 0; j < H; j += width)
    for (int64_t k = 0; k < H; ++k)
      for (int64_t gate = 0; gate < 4; ++gate)
        for (int64_t lane = 0; lane < width; ++lane)
          *panels++ = j + lane < H ? w_hh[(gate * H + j + lane) * H + k] : 0;
}

// Panel of the columns [j, j + 4 lanes) of w_hh.
void pack_backward(const float* w_hh, int64_t H, float* panels) {
  const int64_t width = 4 * lanes();
  for (int64_t j = 0; j < H; j += width)
    for (int64_t k = 0; k < 4 * H; ++k)
      for (int64_t lane = 0; lane < width; ++lane)
        *panels++ = j + lane < H ? w_hh[k * H + j + lane] : 0;
}

// A frame of kRows utterances, units [j, j + n).
template <int kRows>
HWY_INLINE void forward_tile(const LstmScan& s, int64_t step, int64_t first, int64_t j, int64_t n) {
  const int64_t H = s.H, back = s.backwards ? 1 : -1;
  int64_t t[kRows];
  const float* before[kRows];
  Sums<kRows> sums;
  for (int r = 0; r < kRows; ++r) {
    t[r] = s.frame(first + r, step);
    before[r] = step ? s.y.row(t[r] + back) : nullptr;
    for (int gate = 0; gate < 4; ++gate)
      sums.v[r][gate] =
          hn::Add(load(s.gates.row(t[r]) + gate * H + j, n), load(s.bias + gate * H + j, n));
  }
  if (step) multiply<kRows>(before, H, s.panels + j * 4 * H, sums);
  for (int r = 0; r < kRows; ++r) {
    const Vec i = sigmoid(sums.v[r][0]), f = sigmoid(sums.v[r][1]);
    const Vec g = tanh(sums.v[r][2]), o = sigmoid(sums.v[r][3]);
    const Vec old = step ? load(s.cells.row(t[r] + back) + j, n) : zero();
    const Vec c = hn::MulAdd(f, old, hn::Mul(i, g));
    float* gates = s.gates.row(t[r]) + j;
    store(i, gates, n), store(f, gates + H, n), store(g, gates + 2 * H, n);
    store(o, gates + 3 * H, n);
    store(c, s.cells.row(t[r]) + j, n);
    store(hn::Mul(o, tanh(c)), s.y.row(t[r]) + j, n);
  }
}

void scan_forward(const LstmScan& s) {
  auto running = static_cast<int64_t>(s.order.size());
  for (int64_t step = 0; step < s.longest(); ++step) {
    while (s.length(running - 1) <= step) --running;
    for (int64_t j = 0; j < s.H; j += lanes())
      for_tiles(running, [&](auto rows, int64_t first) {
        forward_tile<rows>(s, step, first, j, HWY_MIN(lanes(), s.H - j));
      });
  }
}

// dgates of units [j, j + n) of frame t, whose h has the gradient dh.
HWY_INLINE void cell_backward(const LstmScan& s, int64_t t, int64_t before, float* dcell, bool last,
                              Vec dh, int64_t j, int64_t n) {
  const int64_t H = s.H;
  const float* gates = s.gates.row(t) + j;
  const Vec i = load(gates, n), f = load(gates + H, n), g = load(gates + 2 * H, n);
  const Vec o = load(gates + 3 * H, n), squashed = tanh(load(s.cells.row(t) + j, n)), one = set(1);
  const Vec old = before >= 0 ? load(s.cells.row(before) + j, n) : zero();
  const Vec through = hn::Mul(hn::Mul(dh, o), hn::NegMulAdd(squashed, squashed, one));
  const Vec dc = last ? through : hn::Add(through, load(dcell + j, n));
  const auto slope = [&](Vec gate) { return hn::NegMulAdd(gate, gate, gate); };
  float* to = s.dgates.row(t) + j;
  store(hn::Mul(hn::Mul(dc, g), slope(i)), to, n);
  store(hn::Mul(hn::Mul(dc, old), slope(f)), to + H, n);
  store(hn::Mul(hn::Mul(dc, i), hn::NegMulAdd(g, g, one)), to + 2 * H, n);
  store(hn::Mul(hn::Mul(dh, squashed), slope(o)), to + 3 * H, n);
  store(hn::Mul(dc, f), dcell + j, n);
}

// A frame of kRows utterances, units [j, j + 4 lanes); the first `going` have a frame after it.
template <int kRows>
HWY_INLINE void backward_tile(const LstmScan& s, int64_t step, int64_t first, int64_t going,
                              int64_t j) {
  const int64_t H = s.H, back = s.backwards ? 1 : -1, width = lanes();
  const auto left = [&](int v) { return HWY_MIN(width, H - j - v * width); };
  int64_t t[kRows];
  const float* after[kRows];
  Sums<kRows> sums;
  for (int r = 0; r < kRows; ++r) {
    t[r] = s.frame(first + r, step);
    after[r] = first + r < going ? s.dgates.row(t[r] - back) : s.zeros;
    for (int v = 0; v < 4; ++v)
      sums.v[r][v] = left(v) > 0 ? load(s.y.row(t[r]) + j + v * width, left(v)) : zero();
  }
  if (first < going) multiply<kRows>(after, 4 * H, s.panels + j * 4 * H, sums);
  for (int r = 0; r < kRows; ++r)
    for (int v = 0; v < 4 && left(v) > 0; ++v)
      cell_backward(s, t[r], step ? t[r] + back : -1, s.dcells.row(s.order[first + r]),
                    first + r >= going, sums.v[r][v], j + v * width, left(v));
}

void scan_backward(const LstmScan& s) {
  const auto count = static_cast<int64_t>(s.order.size());
  int64_t going = 0, running = 0;
  for (int64_t step = s.longest() - 1; step >= 0; --step) {
    while (running < count && s.length(running) > step) ++running;
    for (int64_t j = 0; j < s.H; j += 4 * lanes())
      for_tiles(running,
                [&](auto rows, int64_t first) { backward_tile<rows>(s, step, first, going, j); });
    going = running;
  }
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <omp.h>

#include <algorithm>
#include <cstring>

#include "engine/cpu/gemm.h"
#include "engine/cpu/parallel.h"
#include "engine/ops/lstm_library.h"

namespace sft {
namespace {

HWY_EXPORT(pack_forward);
HWY_EXPORT(pack_backward);
HWY_EXPORT(scan_forward);
HWY_EXPORT(scan_backward);

constexpr int64_t kLanes = 16;  // of floats, at most

int64_t whole(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

void check(Tensor x, std::span<const LstmWeights> directions, const Segments& segments) {
  CHECK(directions.size() == 1 || directions.size() == 2, "lstm: {} directions", directions.size());
  CHECK(x.shape.rank() == 2 && x.shape[0] == segments.total(),
        "lstm: x is {}, the batch has {} frames", x.shape, segments.total());
  const int64_t H = directions[0].w_hh.width(), K = x.width();
  for (const LstmWeights& w : directions)
    CHECK(w.w_ih.shape == Shape({4 * H, K}) && w.w_hh.shape == Shape({4 * H, H}) &&
              w.b_ih.shape == Shape{4 * H} && w.b_hh.shape == Shape{4 * H},
          "lstm: w_ih {}, w_hh {}, b_ih {}, b_hh {} for x {}", w.w_ih.shape, w.w_hh.shape,
          w.b_ih.shape, w.b_hh.shape, x.shape);
}

// All utterances, longest first, dealt out to `groups` in turn; group g has [g B / groups rounded
// up, ...).
struct Groups {
  std::span<int32_t> order;
  int64_t count;

  std::span<const int32_t> operator[](int64_t g) const {
    const auto B = static_cast<int64_t>(order.size()), more = B % count, each = B / count;
    const int64_t first = g * each + std::min(g, more);
    return order.subspan(first, each + (g < more ? 1 : 0));
  }
};

// As many groups of utterances as give every thread a piece: no result depends on them.
Groups make_groups(Context& ctx, const Segments& segments, size_t directions) {
  const int64_t B = segments.batch();
  const Tensor memory = ctx.temporary({2 * B}, Dtype::i32);
  const int64_t wanted = (omp_get_max_threads() + directions - 1) / directions;
  Groups groups{{memory.as<int32_t>(), static_cast<size_t>(B)},
                std::max<int64_t>(1, std::min(wanted, B))};
  if (ctx.dry) return groups;
  const std::span sorted(memory.as<int32_t>() + B, static_cast<size_t>(B));
  for (int32_t b = 0; b < B; ++b) sorted[b] = b;
  std::sort(sorted.begin(), sorted.end(), [&](int32_t a, int32_t b) {
    const int la = segments.length(a), lb = segments.length(b);
    return la != lb ? la > lb : a < b;
  });
  int32_t* to = groups.order.data();
  for (int64_t g = 0; g < groups.count; ++g)
    for (int64_t i = g; i < B; i += groups.count) *to++ = sorted[i];
  return groups;
}

// scan(direction, group) in parallel.
template <class F>
void for_pieces(size_t directions, const Groups& groups, F&& scan) {
  const auto pieces = static_cast<int64_t>(directions) * groups.count;
  cpu::parallel_for(pieces, 1, [&](int64_t piece, int64_t) {
    scan(static_cast<size_t>(piece / groups.count), groups[piece % groups.count]);
  });
}

// h_(t-1) of every frame, zero at the first one of each utterance.
void shift(Tensor h, const Segments& segments, bool backwards, Tensor to) {
  const int64_t bytes = h.width() * static_cast<int64_t>(sizeof(float));
  cpu::parallel_for(segments.batch(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = segments.starts[b], last = segments.starts[b + 1] - 1;
      for (int64_t t = first; t <= last; ++t) {
        if (t == (backwards ? last : first))
          std::memset(to.row(t), 0, bytes);
        else
          std::memcpy(to.row(t), h.row(backwards ? t + 1 : t - 1), bytes);
      }
    }
  });
}

double flops(Tensor x, int64_t H, size_t directions) {
  return 8.0 * static_cast<double>(directions) * x.shape[0] * H * (x.width() + H);
}

}  // namespace

LstmOut lstm_forward(Context& ctx, Tensor x, std::span<const LstmWeights> directions,
                     const Segments& segments) {
  check(x, directions, segments);
  const int64_t T = x.shape[0], H = directions[0].w_hh.width();
  const size_t D = directions.size();
  const bool library = cuda::lstm_by_library(ctx, x, directions, segments);
  LstmOut out{.y = ctx.activation({T, static_cast<int64_t>(D) * H}, x.dtype),
              .gates = {},
              .cells = {},
              .saved = {}};
  if (library) {
    ProfileScope profile(ctx.profile, "lstm", flops(x, H, D), 4.0 * T * (x.width() + D * 6 * H));
    return cuda::library_lstm_forward(ctx, x, directions, segments, out), out;
  }
  for (size_t d = 0; d < D; ++d)
    out.gates[d] = ctx.activation({T, 4 * H}), out.cells[d] = ctx.activation({T, H});
  ProfileScope profile(ctx.profile, "lstm", flops(x, H, D), 4.0 * T * (x.width() + D * 6 * H));
  if (ctx.device == Device::cuda) return cuda::lstm_forward(ctx, x, directions, segments, out), out;
  ScratchScope scratch(ctx.scratch);
  const Groups groups = make_groups(ctx, segments, D);
  const Tensor bias = ctx.temporary({static_cast<int64_t>(D), 4 * H});
  std::array<const float*, 2> panels{};
  std::array<cpu::PackedWeight, 2> inputs;
  for (size_t d = 0; d < D; ++d) {
    const float* w = directions[d].w_hh.f32();
    panels[d] = derived(ctx, w, fnv1a("lstm.forward"), 4 * H * whole(H, kLanes), [&](float* to) {
      HWY_DYNAMIC_DISPATCH(pack_forward)(w, H, to);
    });
    inputs[d] = cpu::pack_weight(ctx, directions[d].w_ih);
  }
  if (ctx.dry) return out;
  for (size_t d = 0; d < D; ++d) {
    cpu::matmul(x, inputs[d], out.gates[d]);
    const LstmWeights& w = directions[d];
    for (int64_t j = 0; j < 4 * H; ++j) bias.row(d)[j] = w.b_ih.f32()[j] + w.b_hh.f32()[j];
  }
  for_pieces(D, groups, [&](size_t d, std::span<const int32_t> order) {
    const LstmScan scan{.H = H,
                        .backwards = d == 1,
                        .order = order,
                        .starts = segments.starts,
                        .panels = panels[d],
                        .bias = bias.row(d),
                        .gates = out.gates[d],
                        .cells = out.cells[d],
                        .y = out.y.columns(d * H, H),
                        .dgates = {},
                        .dcells = {},
                        .zeros = nullptr};
    HWY_DYNAMIC_DISPATCH(scan_forward)(scan);
  });
  return out;
}

void lstm_backward(Context& ctx, Tensor dy, Tensor x, std::span<const LstmWeights> directions,
                   const Segments& segments, const LstmOut& out, Grad dx,
                   std::span<const LstmGrads> grads) {
  const int64_t T = x.shape[0], H = directions[0].w_hh.width();
  const size_t D = directions.size();
  if (ctx.device == Device::cuda) {
    ProfileScope profile(ctx.profile, "lstm.backward", 2 * flops(x, H, D), 4.0 * T * D * 20 * H);
    if (out.saved)
      return cuda::library_lstm_backward(ctx, dy, x, directions, segments, out, dx, grads);
    return cuda::lstm_backward(ctx, dy, x, directions, segments, out, dx, grads);
  }
  ScratchScope scratch(ctx.scratch);
  const Groups groups = make_groups(ctx, segments, D);
  const Tensor zeros = ctx.temporary({4 * H}), before = ctx.temporary({T, H});
  std::array<Tensor, 2> dgates, dcells;
  std::array<const float*, 2> panels{};
  std::array<cpu::BackwardWeight, 2> inputs, states;
  for (size_t d = 0; d < D; ++d) {
    const float* w = directions[d].w_hh.f32();
    inputs[d] = cpu::pack_backward(ctx, directions[d].w_ih, T, !!dx, !!grads[d].w_ih);
    states[d] = cpu::pack_backward(ctx, directions[d].w_hh, T, false, !!grads[d].w_hh);
    dgates[d] = ctx.temporary({T, 4 * H}), dcells[d] = ctx.temporary({segments.batch(), H});
    panels[d] =
        derived(ctx, w, fnv1a("lstm.backward"), 4 * H * whole(H, 4 * kLanes), [&](float* to) {
          HWY_DYNAMIC_DISPATCH(pack_backward)
          (w, H, to);
        });
  }
  if (!ctx.dry) {
    ProfileScope profile(ctx.profile, "lstm.backward.scan", flops(x, H, D) * H / (x.width() + H),
                         4.0 * T * D * 10 * H);
    std::fill_n(zeros.f32(), 4 * H, 0.0f);
    for_pieces(D, groups, [&](size_t d, std::span<const int32_t> order) {
      const LstmScan scan{.H = H,
                          .backwards = d == 1,
                          .order = order,
                          .starts = segments.starts,
                          .panels = panels[d],
                          .bias = nullptr,
                          .gates = out.gates[d],
                          .cells = out.cells[d],
                          .y = dy.columns(d * H, H),
                          .dgates = dgates[d],
                          .dcells = dcells[d],
                          .zeros = zeros.f32()};
      HWY_DYNAMIC_DISPATCH(scan_backward)(scan);
    });
  }
  if (ctx.dry) return;
  for (size_t d = 0; d < D; ++d) {
    ProfileScope profile(ctx.profile, "lstm.backward", flops(x, H, D), 4.0 * T * 10 * H);
    cpu::matmul_dx(dgates[d], inputs[d], {dx.to, dx.add || d == 1});
    cpu::matmul_dweight(dgates[d], x, inputs[d], grads[d].w_ih, grads[d].b_ih);
    if (grads[d].w_hh) shift(out.y.columns(d * H, H), segments, d == 1, before);
    cpu::matmul_dweight(dgates[d], before, states[d], grads[d].w_hh, grads[d].b_hh);
  }
}

}  // namespace sft
#endif
