#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/attention.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include <cmath>

#include "engine/cpu/philox-inl.h"
#include "engine/cpu/tile-inl.h"
#include "engine/cpu/vector_math-inl.h"
#include "engine/ops/attention.h"

#ifndef SFT_ATTENTION_HEAD
#define SFT_ATTENTION_HEAD
namespace sft {

// One head of one utterance. Matrices [T, D], rows qkv_stride or y_stride apart.
struct AttentionHead {
  const float *q, *k, *v;
  int64_t qkv_stride;
  float* y;
  float* lse;  // [T]
  int64_t y_stride;
  int64_t T, D;
  Rng rng;
  Dropout dropout;  // of this head
  uint32_t utterance;
  const float *gate, *table;  // [T], [2 reach + 1]; null: no bias
  int64_t reach;
};

struct AttentionHeadGrads {
  const float* dy;
  int64_t dy_stride;
  float *dq, *dk, *dv;  // null: not wanted
  int64_t dqkv_stride;
  bool add;
  float* dgate;  // [T]; null: not wanted
  bool dgate_add;
  float* dtable;  // [2 T - 1], by key - query, written; null: not wanted
};

}  // namespace sft
#endif

// Queries lie along the lanes: a block of kTileColumns queries is worked through keys, kKeys at a
// time, and everything is transposed: scores [keys][queries], outputs [D][queries]. So the softmax
// runs down columns, without sums across lanes, and the eight numbers of one Philox call are eight
// keys of a lane.
HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {
namespace {

constexpr int64_t kKeys = 128;    // of a block: scores and their gradients stay in L1
constexpr int64_t kGroup = 8;     // keys of one Philox call; keys are padded to it
constexpr float kNever = -1e30f;  // the score of a key that is not there
constexpr int64_t kQueries = kTileColumns;
constexpr int64_t kTemporary = std::max(kTileColumns, kTileRows);  // columns that transposing needs

constexpr int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Hands out pieces of one thread's memory.
struct Pieces {
  float* next;
  float* take(int64_t count) {
    float* piece = next;
    next += padded(count, 16);
    return piece;
  }
};

// f(key of the group, vector of queries, factor): what dropout multiplies kGroup keys from `key` on
// by, for the queries from `query` on.
template <class F>
HWY_INLINE void drop_factors(const AttentionHead& h, int64_t query, int64_t key, F&& f) {
  const WordLanes d;
  const hn::RebindToSigned<Lanes> di;
  const auto calls = static_cast<uint32_t>(padded(h.T, kGroup) / kGroup);
  const auto threshold = hn::Set(di, static_cast<int32_t>(h.dropout.threshold()) - 1);
  const Vec scale = set(h.dropout.scale());
  for (int64_t v = 0; v < 2; ++v) {
    const Words row = hn::Iota(d, static_cast<uint32_t>(query + v * kLanes));
    const Words call =
        hn::Add(hn::Mul(row, hn::Set(d, calls)), hn::Set(d, static_cast<uint32_t>(key / kGroup)));
    Words words[4];
    philox_lanes(h.rng, call, h.utterance, h.dropout.site, words);
    for (int64_t i = 0; i < kGroup; ++i) {
      const Words bits =
          i % 2 ? hn::ShiftRight<16>(words[i / 2]) : hn::And(words[i / 2], hn::Set(d, 0xFFFFu));
      const auto keep = hn::Gt(hn::BitCast(di, bits), threshold);
      f(i, v, hn::IfThenElseZero(hn::RebindMask(Lanes(), keep), scale));
    }
  }
}

// The running maximum, sum and output of a block of queries.
struct Softmax {
  Vec most[2], total[2];
};

// scores [n][kQueries] -> exp(score - maximum so far); the output so far, [width][kQueries], is
// brought to the new maximum.
HWY_NOINLINE void softmax_block(float* scores, int64_t n, Softmax& s, float* output,
                                int64_t width) {
  const Lanes d;
  for (int v = 0; v < 2; ++v) {
    float* column = scores + v * kLanes;
    Vec most = s.most[v], other = s.most[v];
    for (int64_t i = 0; i < n; i += 2, column += 2 * kQueries) {
      most = hn::Max(most, hn::LoadU(d, column));
      other = hn::Max(other, hn::LoadU(d, column + kQueries));
    }
    most = hn::Max(most, other);
    const Vec shrink = exp(hn::Sub(s.most[v], most));
    s.most[v] = most;
    s.total[v] = hn::Mul(s.total[v], shrink);
    for (int64_t k = 0; k < width; ++k) {
      float* at = output + k * kQueries + v * kLanes;
      hn::StoreU(hn::Mul(hn::LoadU(d, at), shrink), d, at);
    }
  }
  Vec total0 = s.total[0], total1 = s.total[1];
  for (int64_t i = 0; i < n; ++i, scores += kQueries) {
    const Vec p0 = exp(hn::Sub(hn::LoadU(d, scores), s.most[0]));
    const Vec p1 = exp(hn::Sub(hn::LoadU(d, scores + kLanes), s.most[1]));
    total0 = hn::Add(total0, p0), total1 = hn::Add(total1, p1);
    hn::StoreU(p0, d, scores);
    hn::StoreU(p1, d, scores + kLanes);
  }
  s.total[0] = total0, s.total[1] = total1;
}

// scores of keys [first, first + n) of T, times the queries; keys past T get kNever.
HWY_INLINE void score_block(const float* keys, const float* queries, int64_t T, int64_t D,
                            int64_t first, int64_t n, float* scores) {
  multiply_panels(keys + first * D, kTileRows * D, queries, n, D, scores, false);
  for (int64_t i = std::max<int64_t>(T - first, 0) * kQueries; i < n * kQueries; ++i)
    scores[i] = kNever;
}

// Entries by query - key - lowest, which is how a vector of queries reads and writes them in one
// piece: the table and, in the backward, its gradient.
struct Offsets {
  int64_t lowest, count;

  // Queries [first, last), keys [0, rows).
  Offsets(int64_t first, int64_t last, int64_t rows)
      : lowest(first - rows + 1), count(padded(last - first, kQueries) + rows - 1) {}
  int64_t at(int64_t query, int64_t key) const { return query - key - lowest; }
};

constexpr int64_t offsets_at_most(int64_t T) { return padded(T, kQueries) + padded(T, kGroup); }

void spread_table(const AttentionHead& h, const Offsets& offsets, float* to) {
  for (int64_t n = 0; n < offsets.count; ++n)
    to[n] = h.table[h.reach + std::clamp(-offsets.lowest - n, -h.reach, h.reach)];
}

// The gates of a block of queries; 0 for those that are not there.
struct Gates {
  Vec of[2];

  Gates(const AttentionHead& h, int64_t query, int64_t count) : of{zero(), zero()} {
    for (int64_t v = 0; v < 2; ++v)
      if (const int64_t there = count - v * kLanes; there > 0)
        of[v] = load(h.gate + query + v * kLanes, there);
  }
};

// scores of n keys += gate times table; `table` is the entry of the first query and the first key.
HWY_NOINLINE void add_bias(const float* table, const Gates& gates, int64_t n, float* scores) {
  const Lanes d;
  for (int64_t i = 0; i < n; ++i, --table, scores += kQueries)
    for (int64_t v = 0; v < 2; ++v) {
      float* at = scores + v * kLanes;
      hn::StoreU(hn::MulAdd(gates.of[v], hn::LoadU(d, table + v * kLanes), hn::LoadU(d, at)), d,
                 at);
    }
}

int64_t forward_scratch(int64_t T, int64_t D, bool bias) {  // numbers, of eight pieces
  const int64_t rows = padded(T, kGroup), width = padded(D, kTileRows);
  return rows * (D + width) + kTemporary * D + kQueries * (D + width + kKeys + 1) +
         (bias ? offsets_at_most(T) : 0) + 8 * 16;
}

// Query rows [first, last) of one head.
void forward_rows(const AttentionHead& h, int64_t first, int64_t last, float* memory) {
  const Lanes d;
  const int64_t T = h.T, D = h.D, rows = padded(T, kGroup), width = padded(D, kTileRows);
  Pieces pieces{memory};
  float* temporary = pieces.take(kTemporary * D);
  float* keys = pieces.take(rows * D);         // panels of rows
  float* values = pieces.take(rows * width);   // panels of columns
  float* queries = pieces.take(D * kQueries);  // transposed
  float* output = pieces.take(width * kQueries);
  float* scores = pieces.take(kKeys * kQueries);
  float* factors = pieces.take(kQueries);
  const Offsets offsets(first, last, rows);
  float* table = pieces.take(h.gate ? offsets.count : 0);
  if (h.gate) spread_table(h, offsets, table);
  pack_rows(h.k, h.qkv_stride, T, rows, D, temporary, keys);
  pack_columns(h.v, h.qkv_stride, T, rows, D, values);
  const float scale = 1 / std::sqrt(static_cast<float>(D));
  for (int64_t query = first; query < last; query += kQueries) {
    const int64_t count = std::min(last - query, kQueries);
    transpose_in<kQueries>(h.q + query * h.qkv_stride, h.qkv_stride, count, D, scale, temporary,
                           queries);
    std::fill_n(output, width * kQueries, 0.0f);
    Softmax s{{set(kNever), set(kNever)}, {zero(), zero()}};
    for (int64_t key = 0; key < rows; key += kKeys) {
      const int64_t n = std::min(kKeys, rows - key);
      score_block(keys, queries, T, D, key, n, scores);
      if (h.gate) add_bias(table + offsets.at(query, key), Gates(h, query, count), n, scores);
      softmax_block(scores, n, s, output, width);
      if (h.dropout)
        for (int64_t i = 0; i < n; i += kGroup)
          drop_factors(h, query, key + i, [&](int64_t j, int64_t v, Vec factor) {
            float* at = scores + (i + j) * kQueries + v * kLanes;
            hn::StoreU(hn::Mul(hn::LoadU(d, at), factor), d, at);
          });
      multiply_panels(values + key * kTileRows, kTileRows * rows, scores, width, n, output, true);
    }
    for (int64_t v = 0; v < 2; ++v) {
      hn::StoreU(hn::Div(set(1), s.total[v]), d, factors + v * kLanes);
      const int64_t there = std::min(count - v * kLanes, kLanes);
      if (there > 0) store(hn::Add(s.most[v], log(s.total[v])), h.lse + query + v * kLanes, there);
    }
    transpose_out(output, count, D, factors, temporary, h.y + query * h.y_stride, h.y_stride,
                  false);
  }
}

int64_t backward_scratch(int64_t T, int64_t D, bool bias) {  // numbers, of nineteen pieces
  const int64_t rows = padded(T, kGroup), width = padded(D, kTileRows), wide = padded(D, kLanes);
  return rows * (2 * D + width + 2 * wide) + kTemporary * D +
         kQueries * (2 * D + width + 2 * wide + 2 * kKeys + 4) +
         (bias ? (1 + kLanes) * offsets_at_most(T) : 0) + 19 * 16;
}

// scores -> probabilities after dropout, slopes (gradients by them) -> gradients of the scores:
// p (factor slope - delta). Of n keys from `key` on, for the queries from `query` on.
HWY_NOINLINE void gradient_block(const AttentionHead& h, int64_t query, int64_t key, int64_t n,
                                 const float* lse, const float* delta, float* scores,
                                 float* slopes) {
  const Lanes d;
  const auto apply = [&](int64_t i, int64_t v, Vec factor) {
    float* p_at = scores + i * kQueries + v * kLanes;
    float* s_at = slopes + i * kQueries + v * kLanes;
    const Vec p = exp(hn::Sub(hn::LoadU(d, p_at), hn::LoadU(d, lse + v * kLanes)));
    const Vec slope = hn::MulSub(factor, hn::LoadU(d, s_at), hn::LoadU(d, delta + v * kLanes));
    hn::StoreU(hn::Mul(p, factor), d, p_at);
    hn::StoreU(hn::Mul(p, slope), d, s_at);
  };
  for (int64_t i = 0; i < n; i += kGroup) {
    if (h.dropout)
      drop_factors(h, query, key + i,
                   [&](int64_t j, int64_t v, Vec factor) { apply(i + j, v, factor); });
    else
      for (int64_t j = 0; j < kGroup; ++j)
        for (int64_t v = 0; v < 2; ++v) apply(i + j, v, set(1));
  }
}

// lse and delta_i = dy_i y_i (the sum of p dp over keys) of a block of queries; 0 for those that
// are not there.
void query_sums(const AttentionHead& h, const AttentionHeadGrads& g, int64_t query, int64_t count,
                float* lse, float* delta) {
  for (int64_t i = 0; i < kQueries; ++i) {
    Vec total = zero();
    if (i < count)
      for_vectors(h.D, [&](int64_t k, int64_t n) {
        total = hn::MulAdd(load(g.dy + (query + i) * g.dy_stride + k, n),
                           load(h.y + (query + i) * h.y_stride + k, n), total);
      });
    delta[i] = sum(total);
    lse[i] = i < count ? h.lse[query + i] : 0;
  }
}

// slopes of n keys from `key` on, for the queries at the entry `at` of `offsets` -> dgate
// [kQueries]
// += slope table, and gate slope onto the table's gradient. That has kLanes parts, key by key in
// turn: so a vector of one never lies half over another that was just written.
HWY_NOINLINE void bias_gradients(const float* table, const Offsets& offsets, int64_t query,
                                 int64_t key, int64_t n, const Gates& gates, const float* slopes,
                                 float* dgate, float* dtable) {
  const Lanes d;
  Vec sums[2] = {hn::LoadU(d, dgate), hn::LoadU(d, dgate + kLanes)};
  for (int64_t i = 0; i < n; ++i, slopes += kQueries) {
    const int64_t at = offsets.at(query, key + i);
    float* to = dtable + (key + i) % kLanes * offsets.count + at;
    for (int64_t v = 0; v < 2; ++v) {
      const Vec slope = hn::LoadU(d, slopes + v * kLanes);
      sums[v] = hn::MulAdd(slope, hn::LoadU(d, table + at + v * kLanes), sums[v]);
      hn::StoreU(hn::MulAdd(slope, gates.of[v], hn::LoadU(d, to + v * kLanes)), d, to + v * kLanes);
    }
  }
  hn::StoreU(sums[0], d, dgate);
  hn::StoreU(sums[1], d, dgate + kLanes);
}

// The parts of the table's gradient -> [2 T - 1] by key - query.
void fold_table(float* parts, const Offsets& offsets, int64_t T, float* to) {
  for (int64_t part = 1; part < kLanes; ++part)
    for_vectors(offsets.count, [&](int64_t k, int64_t n) {
      store(hn::Add(load(parts + k, n), load(parts + part * offsets.count + k, n)), parts + k, n);
    });
  for (int64_t distance = 1 - T; distance < T; ++distance)
    to[distance + T - 1] = parts[offsets.at(-distance, 0)];
}

void write_rows(const float* src, int64_t src_stride, int64_t rows, int64_t width, float* dst,
                int64_t dst_stride, bool add) {
  for (int64_t r = 0; r < rows; ++r, src += src_stride, dst += dst_stride)
    for_vectors(width, [&](int64_t k, int64_t n) {
      const Vec x = load(src + k, n);
      store(add ? hn::Add(load(dst + k, n), x) : x, dst + k, n);
    });
}

void backward_head(const AttentionHead& h, const AttentionHeadGrads& g, float* memory) {
  const int64_t T = h.T, D = h.D, rows = padded(T, kGroup), width = padded(D, kTileRows),
                wide = padded(D, kLanes);
  Pieces pieces{memory};
  float* temporary = pieces.take(kTemporary * D);
  float* keys = pieces.take(rows * D);             // panels of rows
  float* values = pieces.take(rows * D);           // panels of rows
  float* key_columns = pieces.take(rows * width);  // panels of columns
  float* dk = pieces.take(rows * wide);
  float* dv = pieces.take(rows * wide);
  float* queries = pieces.take(D * kQueries);        // transposed, scaled
  float* query_rows = pieces.take(kQueries * wide);  // scaled
  float* dy = pieces.take(D * kQueries);             // transposed
  float* dy_rows = pieces.take(kQueries * wide);
  float* dq = pieces.take(width * kQueries);  // transposed
  float* scores = pieces.take(kKeys * kQueries);
  float* slopes = pieces.take(kKeys * kQueries);
  float* lse = pieces.take(kQueries);
  float* delta = pieces.take(kQueries);
  float* scales = pieces.take(kQueries);
  float* dgate = pieces.take(kQueries);
  const Offsets offsets(0, T, rows);
  float* table = pieces.take(h.gate ? offsets.count : 0);
  float* dtable = pieces.take(h.gate ? kLanes * offsets.count : 0);
  if (h.gate) spread_table(h, offsets, table), std::fill_n(dtable, kLanes * offsets.count, 0.0f);
  pack_rows(h.k, h.qkv_stride, T, rows, D, temporary, keys);
  pack_rows(h.v, h.qkv_stride, T, rows, D, temporary, values);
  pack_columns(h.k, h.qkv_stride, T, rows, D, key_columns);
  std::fill_n(dk, rows * wide, 0.0f);
  std::fill_n(dv, rows * wide, 0.0f);
  const float scale = 1 / std::sqrt(static_cast<float>(D));
  std::fill_n(scales, kQueries, scale);
  for (int64_t query = 0; query < T; query += kQueries) {
    const int64_t count = std::min(T - query, kQueries);
    const float *q = h.q + query * h.qkv_stride, *dy_at = g.dy + query * g.dy_stride;
    transpose_in<kQueries>(q, h.qkv_stride, count, D, scale, temporary, queries);
    copy_rows(q, h.qkv_stride, count, D, kQueries, wide, scale, query_rows);
    transpose_in<kQueries>(dy_at, g.dy_stride, count, D, 1, temporary, dy);
    copy_rows(dy_at, g.dy_stride, count, D, kQueries, wide, 1, dy_rows);
    query_sums(h, g, query, count, lse, delta);
    std::fill_n(dq, width * kQueries, 0.0f);
    std::fill_n(dgate, kQueries, 0.0f);
    for (int64_t key = 0; key < rows; key += kKeys) {
      const int64_t n = std::min(kKeys, rows - key);
      score_block(keys, queries, T, D, key, n, scores);
      if (h.gate) add_bias(table + offsets.at(query, key), Gates(h, query, count), n, scores);
      multiply_panels(values + key * D, kTileRows * D, dy, n, D, slopes, false);
      gradient_block(h, query, key, n, lse, delta, scores, slopes);
      if (g.dgate || g.dtable)
        bias_gradients(table, offsets, query, key, n, Gates(h, query, count), slopes, dgate,
                       dtable);
      multiply_panels(key_columns + key * kTileRows, kTileRows * rows, slopes, width, n, dq, true);
      add_product(scores, dy_rows, n, wide, dv + key * wide);
      add_product(slopes, query_rows, n, wide, dk + key * wide);
    }
    if (g.dq)
      transpose_out(dq, count, D, scales, temporary, g.dq + query * g.dqkv_stride, g.dqkv_stride,
                    g.add);
    if (g.dgate) write_rows(dgate, kQueries, 1, count, g.dgate + query, count, g.dgate_add);
  }
  if (g.dtable) fold_table(dtable, offsets, T, g.dtable);
  if (!g.dq) return;
  write_rows(dk, wide, T, D, g.dk, g.dqkv_stride, g.add);
  write_rows(dv, wide, T, D, g.dv, g.dqkv_stride, g.add);
}

}  // namespace
}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <omp.h>

namespace sft {
namespace {

HWY_EXPORT(forward_scratch);
HWY_EXPORT(forward_rows);
HWY_EXPORT(backward_scratch);
HWY_EXPORT(backward_head);

constexpr int64_t kRows = 512;  // queries of a forward item; each packs the head's keys anew

struct Item {
  int32_t utterance, head;
  int64_t first, last;  // queries
};

// All (utterance, head, rows), longest utterances first.
std::span<Item> plan(Context& ctx, Segments segments, int heads, int64_t rows) {
  const int32_t B = segments.batch();
  int64_t count = 0;
  for (int b = 0; b < B; ++b) count += heads * ((segments.length(b) + rows - 1) / rows);
  auto* items = static_cast<Item*>(ctx.scratch.take(count * static_cast<int64_t>(sizeof(Item))));
  auto* order = static_cast<int32_t*>(ctx.scratch.take(B * static_cast<int64_t>(sizeof(int32_t))));
  if (ctx.dry) return {};
  for (int32_t b = 0; b < B; ++b) order[b] = b;
  std::sort(order, order + B, [&](int32_t a, int32_t b) {
    return std::pair(-segments.length(a), a) < std::pair(-segments.length(b), b);
  });
  Item* next = items;
  for (int32_t i = 0; i < B; ++i)
    for (int32_t head = 0; head < heads; ++head)
      for (int64_t first = 0, T = segments.length(order[i]); first < T; first += rows)
        *next++ = {order[i], head, first, std::min(T, first + rows)};
  return {items, next};
}

struct Heads {
  Tensor qkv, y, lse;
  RelativeBias bias;
  int64_t D;
  Rng rng;
  Dropout dropout;
  Segments segments;

  AttentionHead at(const Item& item) const {
    const int64_t start = segments.starts[item.utterance], C = y.width();
    const float* q = qkv.row(start) + item.head * D;
    Dropout mine = dropout;
    mine.site += static_cast<uint32_t>(item.head);
    return {.q = q,
            .k = q + C,
            .v = q + 2 * C,
            .qkv_stride = qkv.row_stride,
            .y = y.row(start) + item.head * D,
            .lse = lse.row(item.head) + start,
            .y_stride = y.row_stride,
            .T = segments.length(item.utterance),
            .D = D,
            .rng = rng,
            .dropout = mine,
            .utterance = static_cast<uint32_t>(segments.utterances[item.utterance]),
            .gate = bias ? bias.gate.row(item.head) + start : nullptr,
            .table = bias ? bias.table.row(item.head) : nullptr,
            .reach = bias ? bias.table.width() / 2 : 0};
  }
};

void check(Tensor qkv, const RelativeBias& bias, int heads, Segments segments) {
  const int64_t width = qkv.width();
  CHECK(heads > 0 && width % (3 * heads) == 0, "attention: qkv is {}, {} heads", qkv.shape, heads);
  const int64_t D = width / (3 * heads);
  CHECK(D % 4 == 0 && D <= 128, "attention: head width is {} (expected a multiple of 4 up to 128)",
        D);
  CHECK(qkv.rows() == segments.total(), "attention: qkv is {}, {} frames in all", qkv.shape,
        segments.total());
  if (!bias) return;
  CHECK((bias.gate.shape == Shape{heads, qkv.rows()}),
        "attention: the gate is {}, {} heads, {} frames", bias.gate.shape, heads, qkv.rows());
  CHECK(bias.table.shape.rank() == 2 && bias.table.shape[0] == heads &&
            bias.table.width() % 2 == 1 && bias.table.width() > 1,
        "attention: the table is {} (expected an odd number of distances above 1 for {} heads)",
        bias.table.shape, heads);
}

double pairs(Segments segments) {  // of frames
  double total = 0;
  for (int b = 0; b < segments.batch(); ++b)
    total += static_cast<double>(segments.length(b)) * segments.length(b);
  return total;
}

// One piece of memory for each thread.
struct ThreadMemory {
  float* data;
  int64_t numbers;  // of a piece
};

ThreadMemory thread_memory(Context& ctx, int64_t numbers) {
  const int64_t bytes = omp_get_max_threads() * numbers * static_cast<int64_t>(sizeof(float));
  return {static_cast<float*>(ctx.scratch.take(bytes)), numbers};
}

// f(item, memory of the thread) for every item.
template <class F>
void for_items(std::span<const Item> items, ThreadMemory memory, F&& f) {
#pragma omp parallel for schedule(dynamic, 1)
  for (size_t i = 0; i < items.size(); ++i)
    f(items[i], memory.data + omp_get_thread_num() * memory.numbers);
}

}  // namespace

AttentionOut attention_forward(Context& ctx, Tensor qkv, const RelativeBias& bias, int heads,
                               Dropout dropout, Segments segments) {
  check(qkv, bias, heads, segments);
  const int64_t T = qkv.rows(), C = qkv.width() / 3, D = C / heads;
  const AttentionOut out{ctx.activation({T, C}, qkv.dtype), ctx.activation({heads, T})};
  ProfileScope profile(ctx.profile, "attention", 4.0 * C * pairs(segments),
                       4.0 * static_cast<double>(bytes_of(qkv.dtype, T * C)));
  if (ctx.device == Device::cuda)
    return cuda::attention_forward(ctx, qkv, bias, heads, dropout, segments, out), out;
  ScratchScope scratch(ctx.scratch);
  const std::span<Item> items = plan(ctx, segments, heads, kRows);
  const ThreadMemory memory = thread_memory(
      ctx, HWY_DYNAMIC_DISPATCH(forward_scratch)(segments.longest(), D, static_cast<bool>(bias)));
  if (ctx.dry) return out;
  const Heads all{qkv, out.y, out.lse, bias, D, ctx.rng, dropout, segments};
  for_items(items, memory, [&](const Item& item, float* mine) {
    HWY_DYNAMIC_DISPATCH(forward_rows)(all.at(item), item.first, item.last, mine);
  });
  return out;
}

namespace {

// What each utterance adds to the table's gradient, [2 T_b - 1] of each head.
struct TableParts {
  float* data = nullptr;  // [H, 2 T]; null: not wanted
  int64_t frames = 0;

  float* of(int64_t start, int head) const {
    return data ? data + 2 * (head * frames + start) : nullptr;
  }
};

// Utterance by utterance; distances beyond the table's go to its ends.
void sum_table(const TableParts& parts, Segments segments, const Grad& to) {
  const int64_t reach = to.to.width() / 2;
  for (int head = 0; head < to.to.rows(); ++head) {
    float* row = to.to.row(head);
    if (!to.add) std::fill_n(row, 2 * reach + 1, 0.0f);
    for (int b = 0; b < segments.batch(); ++b) {
      const int64_t T = segments.length(b);
      const float* part = parts.of(segments.starts[b], head) + T - 1;
      for (int64_t distance = 1 - T; distance < T; ++distance)
        row[reach + std::clamp(distance, -reach, reach)] += part[distance];
    }
  }
}

}  // namespace

void attention_backward(Context& ctx, Tensor dy, Tensor qkv, const RelativeBias& bias,
                        const AttentionOut& out, int heads, Dropout dropout, Segments segments,
                        const AttentionGrads& grads) {
  if (!grads.qkv && !grads.gate && !grads.table) return;
  const int64_t T = qkv.rows(), C = qkv.width() / 3, D = C / heads;
  CHECK(dy.shape == out.y.shape, "attention: dy is {}, y {}", dy.shape, out.y.shape);
  ProfileScope profile(ctx.profile, "attention.backward", 10.0 * C * pairs(segments),
                       9.0 * static_cast<double>(bytes_of(qkv.dtype, T * C)));
  if (ctx.device == Device::cuda)
    return cuda::attention_backward(ctx, dy, qkv, bias, out, heads, dropout, segments, grads);
  ScratchScope scratch(ctx.scratch);
  const std::span<Item> items = plan(ctx, segments, heads, std::max<int64_t>(T, 1));
  const ThreadMemory memory = thread_memory(
      ctx, HWY_DYNAMIC_DISPATCH(backward_scratch)(segments.longest(), D, static_cast<bool>(bias)));
  const TableParts parts{grads.table ? ctx.temporary({2 * heads * T}).f32() : nullptr, T};
  if (ctx.dry) return;
  const Heads all{qkv, out.y, out.lse, bias, D, ctx.rng, dropout, segments};
  for_items(items, memory, [&](const Item& item, float* mine) {
    const int64_t start = segments.starts[item.utterance];
    const Grad& to = grads.qkv;
    float* dq = to ? to.to.row(start) + item.head * D : nullptr;
    const AttentionHeadGrads head{
        .dy = dy.row(start) + item.head * D,
        .dy_stride = dy.row_stride,
        .dq = dq,
        .dk = to ? dq + C : nullptr,
        .dv = to ? dq + 2 * C : nullptr,
        .dqkv_stride = to ? to.to.row_stride : 0,
        .add = to.add,
        .dgate = grads.gate ? grads.gate.to.row(item.head) + start : nullptr,
        .dgate_add = grads.gate.add,
        .dtable = parts.of(start, item.head)};
    HWY_DYNAMIC_DISPATCH(backward_head)(all.at(item), head, mine);
  });
  if (grads.table) sum_table(parts, segments, grads.table);
}

}  // namespace sft
#endif
