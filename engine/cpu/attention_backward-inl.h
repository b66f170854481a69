// The way back of attention of one head on the CPU (engine/ops/attention.h). Included like
// simd-inl.h.
#if defined(SFT_ATTENTION_BACKWARD_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SFT_ATTENTION_BACKWARD_INL_H
#undef SFT_ATTENTION_BACKWARD_INL_H
#else
#define SFT_ATTENTION_BACKWARD_INL_H
#endif

#include "engine/cpu/attention-inl.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {
namespace {

// scores -> probabilities after dropout, slopes (gradients by them) -> gradients of the scores:
// p (factor slope - delta). Of n keys from `key` on, for the kQueries queries from `query` on.
HWY_NOINLINE void gradient_block(const AttentionHead& h, int64_t query, int64_t key, int64_t n,
                                 const float* lse, const float* delta, float* scores,
                                 float* slopes) {
  const Lanes d;
  const auto apply = [&](int64_t i, int64_t v, Vec factor) {
    float* p_at = scores + i * kMoreQueries + v * kLanes;
    float* s_at = slopes + i * kMoreQueries + v * kLanes;
    const Vec p = exp2(hn::Sub(hn::LoadU(d, p_at), hn::LoadU(d, lse + v * kLanes)));
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

// lse in units of ln 2 and delta_i = dy_i y_i (the sum of p dp over keys) of a block of queries;
// those that are not there get probabilities of 0.
void query_sums(const AttentionHead& h, const AttentionHeadGrads& g, int64_t query, int64_t count,
                float* lse, float* delta) {
  for (int64_t i = 0; i < kMoreQueries; ++i) {
    Vec total = zero();
    if (i < count)
      for_vectors(h.D, [&](int64_t k, int64_t n) {
        total = hn::MulAdd(load(g.dy + (query + i) * g.dy_stride + k, n),
                           load(h.y + (query + i) * h.y_stride + k, n), total);
      });
    delta[i] = sum(total);
    lse[i] = i < count ? h.lse[query + i] * kLog2E : -kNever;
  }
}

// slopes of n keys from `key` on, for the kQueries queries at the entry `at` of `offsets` -> dgate
// += slope table, and gate slope onto the table's gradient. That has kLanes parts, key by key in
// turn: so a vector of one never lies half over another that was just written.
HWY_NOINLINE void bias_gradients(const float* table, const Offsets& offsets, int64_t query,
                                 int64_t key, int64_t n, const Gates& gates, const float* slopes,
                                 float* dgate, float* dtable) {
  const Lanes d;
  Vec sums[2] = {hn::LoadU(d, dgate), hn::LoadU(d, dgate + kLanes)};
  for (int64_t i = 0; i < n; ++i, slopes += kMoreQueries) {
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

void write_rows(const float* src, int64_t src_stride, int64_t rows, int64_t width, float factor,
                float* dst, int64_t dst_stride, bool add) {
  for (int64_t r = 0; r < rows; ++r, src += src_stride, dst += dst_stride)
    for_vectors(width, [&](int64_t k, int64_t n) {
      const Vec x = hn::Mul(load(src + k, n), set(factor));
      __builtin_prefetch(dst + kSoon * dst_stride + k, 1);
      store(add ? hn::Add(load(dst + k, n), x) : x, dst + k, n);
    });
}

// c [rows][wide] += products of a and b [depth][wide], times the scales of Pairs.
template <class Kind, int64_t row, int64_t column>
HWY_NOINLINE void add_products(const Packed<Kind>& a, const Packed<Kind>& b, int64_t rows,
                               int64_t depth, int64_t wide, float* c) {
  const Lanes d;
  product<Kind, row, column>(a.words, b.words, wide, rows, depth / Kind::kNumbers, wide,
                             [&](int64_t r, int64_t k, Vec sums) {
                               float* at = c + r * wide + k;
                               if constexpr (Kind::kNumbers == 2)
                                 sums = hn::Mul(
                                     sums, hn::Mul(set(a.scales[r]), hn::LoadU(d, b.scales + k)));
                               hn::StoreU(hn::Add(hn::LoadU(d, at), sums), d, at);
                             });
}

// What backward keeps of one head, in one thread's memory.
template <class Kind, int64_t kHead>
struct Backward {
  using Word = typename Kind::Word;
  static constexpr bool kPacks = Kind::kNumbers == 2;  // what is made on the way
  static constexpr int64_t kAlong = kMoreQueries / Kind::kNumbers;
  int64_t wide, rows;
  Packed<Kind> keys, values;         // as the left side of scores
  Packed<Kind> key_columns;          // right, summed over keys
  Packed<Kind> queries, dy;          // right, of kQueries each: [2][depth][kQueries]
  Packed<Kind> query_rows, dy_rows;  // right, summed over queries
  Packed<Kind> probabilities, slopes_along, slopes_across;  // left
  Word *left_rows, *temporary;
  float *dk, *dv, *dq, *scores, *slopes, *lse, *delta, *dgate, *table, *dtable;

  Backward(Pieces& pieces, int64_t T, int64_t D, int64_t offsets)
      : wide(padded(D, kLanes)),
        rows(padded(T, kGroup)),
        keys(pieces, rows * kStep<Kind, kHead>, rows),
        values(pieces, rows * kStep<Kind, kHead>, rows),
        key_columns(pieces, padded(T, kFewerKeys) / Kind::kNumbers * wide,
                    padded(T, kFewerKeys) / kFewerKeys * wide),
        queries(pieces, kMoreQueries * kHead, kMoreQueries),
        dy(pieces, kMoreQueries * kHead, kMoreQueries),
        query_rows(pieces, kAlong * wide, wide),
        dy_rows(pieces, kAlong * wide, wide),
        probabilities(pieces, kPacks ? kFewerKeys * kAlong : 0, kFewerKeys),
        slopes_along(pieces, kPacks ? kFewerKeys * kAlong : 0, kFewerKeys),
        slopes_across(pieces, kPacks ? kFewerKeys / 2 * kMoreQueries : 0, kMoreQueries),
        left_rows(pieces.take<Word>(kQueries * kStep<Kind, kHead>)),
        temporary(pieces.take<Word>(kQueries * kHead)),
        dk(pieces.take(rows * wide)),
        dv(pieces.take(rows * wide)),
        dq(pieces.take(kMoreQueries * wide)),
        scores(pieces.take(kFewerKeys * kMoreQueries)),
        slopes(pieces.take(kFewerKeys * kMoreQueries)),
        lse(pieces.take(kMoreQueries)),
        delta(pieces.take(kMoreQueries)),
        dgate(pieces.take(kMoreQueries)),
        table(pieces.take(offsets)),
        dtable(pieces.take(kLanes * offsets)) {}

  void head(const AttentionHead& h, const AttentionHeadGrads& g);

 private:
  // The queries from `query` on, `count` of them in `columns` columns.
  struct Block {
    int64_t query, count, columns;
  };
  void pack_keys(const AttentionHead& h);
  void pack_block(const AttentionHead& h, const AttentionHeadGrads& g, const Block& b);
  void slopes_of(const AttentionHead& h, const AttentionHeadGrads& g, const Block& b,
                 const Offsets& offsets, int64_t key, int64_t n);
  void add_gradients(const Block& b, int64_t key, int64_t n);
};

template <class Kind, int64_t kHead>
void Backward<Kind, kHead>::pack_keys(const AttentionHead& h) {
  pack_left<Kind, kHead>(h.k, h.qkv_stride, h.T, h.D, rows, keys);
  pack_left<Kind, kHead>(h.v, h.qkv_stride, h.T, h.D, rows, values);
  pack_right<Kind>(h.k, h.qkv_stride, h.T, h.D, 1, padded(h.T, kFewerKeys), kFewerKeys, wide,
                   key_columns);
}

template <class Kind, int64_t kHead>
void Backward<Kind, kHead>::pack_block(const AttentionHead& h, const AttentionHeadGrads& g,
                                       const Block& b) {
  const float scale = 1 / std::sqrt(static_cast<float>(h.D));
  const float *q = h.q + b.query * h.qkv_stride, *dy_at = g.dy + b.query * g.dy_stride;
  for (int64_t first = 0; first < b.columns; first += kQueries) {
    const int64_t count = b.count - first, words = first * kHead;
    pack_queries<Kind, kHead>(q + first * h.qkv_stride, h.qkv_stride, count, h.D, scale * kLog2E,
                              left_rows, temporary,
                              {queries.words + words, queries.scales + first});
    pack_queries<Kind, kHead>(dy_at + first * g.dy_stride, g.dy_stride, count, h.D, 1, left_rows,
                              temporary, {dy.words + words, dy.scales + first});
  }
  pack_right<Kind>(q, h.qkv_stride, b.count, h.D, scale, kMoreQueries, kMoreQueries, wide,
                   query_rows);
  pack_right<Kind>(dy_at, g.dy_stride, b.count, h.D, 1, kMoreQueries, kMoreQueries, wide, dy_rows);
}

// scores and slopes [n][kMoreQueries] of the keys from `key` on.
template <class Kind, int64_t kHead>
void Backward<Kind, kHead>::slopes_of(const AttentionHead& h, const AttentionHeadGrads& g,
                                      const Block& b, const Offsets& offsets, int64_t key,
                                      int64_t n) {
  for (int64_t first = 0; first < b.columns; first += kQueries) {
    const int64_t words = first * kHead, query = b.query + first, count = b.count - first;
    float *score = scores + first, *slope = slopes + first;
    score_block<Kind, kHead, kMoreQueries>(keys, {queries.words + words, queries.scales + first},
                                           h.T, h.D, key, n, score);
    if (h.gate)
      add_bias<kMoreQueries>(table + offsets.at(query, key), Gates(h, query, count, kLog2E), n,
                             score);
    row_products<Kind, kHead, kMoreQueries>(values, {dy.words + words, dy.scales + first}, h.D, key,
                                            n, slope);
    gradient_block(h, query, key, n, lse + first, delta + first, score, slope);
    if (g.dgate || g.dtable)
      bias_gradients(table, offsets, query, key, n, Gates(h, query, count, 1), slope, dgate + first,
                     dtable);
  }
}

// What scores and slopes of n keys from `key` on give to dq, dk and dv.
template <class Kind, int64_t kHead>
void Backward<Kind, kHead>::add_gradients(const Block& b, int64_t key, int64_t n) {
  const Packed<Kind> columns{key_columns.words + key / Kind::kNumbers * wide,
                             key_columns.scales + key / kFewerKeys * wide};
  if constexpr (kPacks) {
    const float limit = integer_limit(kMoreQueries, kIntegers);
    pack_along(scores, kMoreQueries, n, b.columns, 1, limit, n, kAlong, probabilities.words,
               probabilities.scales);
    pack_along(slopes, kMoreQueries, n, b.columns, 1, limit, n, kAlong, slopes_along.words,
               slopes_along.scales);
    pack_across(slopes, kMoreQueries, n, b.columns, 1, limit, n, kMoreQueries, n,
                slopes_across.words, slopes_across.scales);
    add_products<Kind, kAlong, 1>(probabilities, dy_rows, n, b.columns, wide, dv + key * wide);
    add_products<Kind, kAlong, 1>(slopes_along, query_rows, n, b.columns, wide, dk + key * wide);
    add_products<Kind, 1, kMoreQueries>(slopes_across, columns, b.columns, n, wide, dq);
  } else {
    add_products<Kind, kAlong, 1>({scores, nullptr}, dy_rows, n, b.columns, wide, dv + key * wide);
    add_products<Kind, kAlong, 1>({slopes, nullptr}, query_rows, n, b.columns, wide,
                                  dk + key * wide);
    add_products<Kind, 1, kMoreQueries>({slopes, nullptr}, columns, b.columns, n, wide, dq);
  }
}

template <class Kind, int64_t kHead>
void Backward<Kind, kHead>::head(const AttentionHead& h, const AttentionHeadGrads& g) {
  const int64_t T = h.T, D = h.D;
  const Offsets offsets(0, T, rows);
  if (h.gate) spread_table(h, offsets, table), std::fill_n(dtable, kLanes * offsets.count, 0.0f);
  pack_keys(h);
  std::fill_n(dk, rows * wide, 0.0f);
  std::fill_n(dv, rows * wide, 0.0f);
  for (int64_t query = 0; query < T; query += kMoreQueries) {
    const int64_t count = std::min(T - query, kMoreQueries);
    const Block block{query, count, padded(count, kQueries)};
    pack_block(h, g, block);
    query_sums(h, g, query, count, lse, delta);
    std::fill_n(dq, kMoreQueries * wide, 0.0f);
    std::fill_n(dgate, kMoreQueries, 0.0f);
    for (int64_t key = 0; key < rows; key += kFewerKeys) {
      const int64_t n = std::min(kFewerKeys, rows - key);
      slopes_of(h, g, block, offsets, key, n);
      add_gradients(block, key, n);
    }
    const float scale = 1 / std::sqrt(static_cast<float>(D));
    if (g.dq)
      write_rows(dq, wide, count, D, scale, g.dq + query * g.dqkv_stride, g.dqkv_stride, g.add);
    if (g.dgate) write_rows(dgate, count, 1, count, 1, g.dgate + query, count, g.dgate_add);
  }
  if (g.dtable) fold_table(dtable, offsets, T, g.dtable);
  if (!g.dq) return;
  write_rows(dk, wide, T, D, 1, g.dk, g.dqkv_stride, g.add);
  write_rows(dv, wide, T, D, 1, g.dv, g.dqkv_stride, g.add);
}

}  // namespace
}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
