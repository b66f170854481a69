#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/ops/attention.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set

#include <cmath>

#include "engine/cpu/pairs-inl.h"
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

// Scores are made transposed, [keys][queries], with a few queries along the lanes: so the softmax
// runs down columns, without sums across lanes, and the eight numbers of one Philox call are eight
// keys of a lane. What is summed over keys after it is made as it is kept, [queries][D]. Scores are
// in units of ln 2.
HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {
namespace {

constexpr int64_t kKeys = 128;    // of a block, forward: scores and values stay in the L1 cache
constexpr int64_t kGroup = 8;     // keys of one Philox call; keys are padded to it
constexpr float kNever = -1e30f;  // the score of a key that is not there
constexpr int64_t kQueries = kTileColumns;
static_assert(kQueries % kTileRows == 0, "queries are rows of products, too");
constexpr float kLn2 = 0.693147181f;
constexpr float kIntegers = 4095;  // what columns become, in Pairs

// Backward takes more queries at a time: two sums run over them.
constexpr int64_t kMoreQueries = 2 * kQueries, kFewerKeys = 64;

constexpr int64_t padded(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Words from row to row of queries and keys, an odd number of cache lines; heads up to kHead wide.
template <class Kind, int64_t kHead>
constexpr int64_t kStep = kHead / Kind::kNumbers + 16;

template <class Kind>
int64_t depth_of(int64_t D) {  // words that a score sums over
  return padded(D / Kind::kNumbers, 4);
}

// Hands out pieces of one thread's memory; without any it counts.
class Pieces {
 public:
  explicit Pieces(float* memory) : memory_(memory) {}
  template <class Word = float>
  Word* take(int64_t count) {
    static_assert(sizeof(Word) == sizeof(float));
    float* piece = memory_ ? memory_ + taken_ : nullptr;
    taken_ += padded(count, 16);
    return reinterpret_cast<Word*>(piece);
  }
  int64_t taken() const { return taken_; }

 private:
  float* memory_;
  int64_t taken_ = 0;
};

template <class Kind>
struct Packed {
  typename Kind::Word* words;
  float* scales;  // of Pairs

  Packed(Pieces& pieces, int64_t word_count, int64_t scale_count)
      : words(pieces.take<typename Kind::Word>(word_count)),
        scales(pieces.take(Kind::kNumbers == 1 ? 0 : scale_count)) {}
  Packed(typename Kind::Word* words, float* scales) : words(words), scales(scales) {}
};

// Rows of a head, pairs along them.
template <class Kind, int64_t kHead>
void pack_left(const float* src, int64_t stride, int64_t rows, int64_t D, int64_t count,
               const Packed<Kind>& to) {
  constexpr int64_t step = kStep<Kind, kHead>;
  if constexpr (Kind::kNumbers == 1)
    copy_rows(src, stride, rows, D, 1, count, step, to.words);
  else
    pack_along(src, stride, rows, D, 1, square_limit(D), count, step, to.words, to.scales);
}

// The same for sums over rows: [count][wide], scales for each `block` of them.
template <class Kind>
void pack_right(const float* src, int64_t stride, int64_t rows, int64_t D, float factor,
                int64_t count, int64_t block, int64_t wide, const Packed<Kind>& to) {
  if constexpr (Kind::kNumbers == 1)
    copy_rows(src, stride, rows, D, factor, count, wide, to.words);
  else
    pack_across(src, stride, rows, D, factor, kIntegers, count, wide, block, to.words, to.scales);
}

// Fetches what the next block of queries will read.
void fetch_rows(const float* rows, int64_t stride, int64_t D) {
  for (int64_t r = 0; r < kQueries; ++r)
    for (int64_t k = 0; k < D; k += 16) __builtin_prefetch(rows + r * stride + k, 0, 2);
}

// Up to kQueries rows as the right side of scores, [depth][kQueries]. `rows` and `temporary` are
// memory for kQueries rows.
template <class Kind, int64_t kHead>
void pack_queries(const float* src, int64_t stride, int64_t count, int64_t D, float factor,
                  typename Kind::Word* rows, typename Kind::Word* temporary,
                  const Packed<Kind>& to) {
  constexpr int64_t step = kStep<Kind, kHead>;
  if constexpr (Kind::kNumbers == 1) {
    transpose_in<kQueries>(src, stride, count, D, factor, temporary, to.words);
  } else {
    pack_along(src, stride, count, D, factor, square_limit(D), kQueries, step, rows, to.scales);
    transpose_in<kQueries>(rows, step, kQueries, depth_of<Kind>(D), 1, temporary, to.words);
  }
}

// Products of a head's rows [first, first + n) with a block of queries, rows kLd numbers apart.
template <class Kind, int64_t kHead, int64_t kLd>
HWY_NOINLINE void row_products(const Packed<Kind>& rows, const Packed<Kind>& queries, int64_t D,
                               int64_t first, int64_t n, float* to) {
  constexpr int64_t step = kStep<Kind, kHead>;
  const Lanes d;
  product<Kind, step, 1>(rows.words + first * step, queries.words, kQueries, n, depth_of<Kind>(D),
                         kQueries, [&](int64_t r, int64_t c, Vec sums) {
                           if constexpr (Kind::kNumbers == 2)
                             sums = hn::Mul(sums, hn::Mul(set(rows.scales[first + r]),
                                                          hn::LoadU(d, queries.scales + c)));
                           hn::StoreU(sums, d, to + r * kLd + c);
                         });
}

// Scores of keys [first, first + n) of T; keys past T get kNever.
template <class Kind, int64_t kHead, int64_t kLd>
HWY_INLINE void score_block(const Packed<Kind>& keys, const Packed<Kind>& queries, int64_t T,
                            int64_t D, int64_t first, int64_t n, float* scores) {
  row_products<Kind, kHead, kLd>(keys, queries, D, first, n, scores);
  for (int64_t i = std::max<int64_t>(T - first, 0); i < n; ++i)
    std::fill_n(scores + i * kLd, kQueries, kNever);
}

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

// The running maximum and sum of a block of queries.
struct Softmax {
  Vec most[2], total[2];
};

// What became of one block of scores.
struct SoftmaxBlock {
  float shrink[kQueries];  // what came before is multiplied by
  Vec most[2], total[2];   // of its probabilities
};

// scores [n][kQueries] -> 2^(score - maximum so far).
HWY_NOINLINE void softmax_block(float* scores, int64_t n, Softmax& s, SoftmaxBlock& block) {
  const Lanes d;
  for (int v = 0; v < 2; ++v) {
    float* column = scores + v * kLanes;
    Vec most = set(kNever), other = most;
    for (int64_t i = 0; i < n; i += 2, column += 2 * kQueries) {
      most = hn::Max(most, hn::LoadU(d, column));
      other = hn::Max(other, hn::LoadU(d, column + kQueries));
    }
    most = hn::Max(most, other);
    const Vec before = s.most[v];
    s.most[v] = hn::Max(before, most);
    const Vec shrink = exp2(hn::Sub(before, s.most[v]));
    hn::StoreU(shrink, d, block.shrink + v * kLanes);
    s.total[v] = hn::Mul(s.total[v], shrink);
    block.most[v] = exp2(hn::Sub(most, s.most[v]));
  }
  Vec total0 = zero(), total1 = zero();
  for (int64_t i = 0; i < n; ++i, scores += kQueries) {
    const Vec p0 = exp2(hn::Sub(hn::LoadU(d, scores), s.most[0]));
    const Vec p1 = exp2(hn::Sub(hn::LoadU(d, scores + kLanes), s.most[1]));
    total0 = hn::Add(total0, p0), total1 = hn::Add(total1, p1);
    hn::StoreU(p0, d, scores);
    hn::StoreU(p1, d, scores + kLanes);
  }
  block.total[0] = total0, block.total[1] = total1;
  s.total[0] = hn::Add(s.total[0], total0), s.total[1] = hn::Add(s.total[1], total1);
}

HWY_NOINLINE void drop_block(const AttentionHead& h, int64_t query, int64_t key, int64_t n,
                             float* probabilities) {
  for (int64_t i = 0; i < n; i += kGroup)
    drop_factors(h, query, key + i, [&](int64_t j, int64_t v, Vec factor) {
      float* at = probabilities + (i + j) * kQueries + v * kLanes;
      hn::StoreU(hn::Mul(hn::LoadU(Lanes(), at), factor), Lanes(), at);
    });
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

// The gates of a block of queries, times factor; 0 for those that are not there.
struct Gates {
  Vec of[2];

  Gates(const AttentionHead& h, int64_t query, int64_t count, float factor) : of{zero(), zero()} {
    for (int64_t v = 0; v < 2; ++v)
      if (const int64_t there = count - v * kLanes; there > 0)
        of[v] = hn::Mul(load(h.gate + query + v * kLanes, there), set(factor));
  }
};

// scores of n keys += gate times table; `table` is the entry of the first query and the first key.
template <int64_t kLd>
HWY_NOINLINE void add_bias(const float* table, const Gates& gates, int64_t n, float* scores) {
  const Lanes d;
  for (int64_t i = 0; i < n; ++i, --table, scores += kLd)
    for (int64_t v = 0; v < 2; ++v) {
      float* at = scores + v * kLanes;
      hn::StoreU(hn::MulAdd(gates.of[v], hn::LoadU(d, table + v * kLanes), hn::LoadU(d, at)), d,
                 at);
    }
}

#if HWY_TARGET == HWY_AVX3
// Probabilities [n][kQueries] -> pairs of keys [n / 2][kQueries]; the scale of each query for these
// keys, as large as their largest and their sum allow. factor: of dropout.
HWY_NOINLINE void pack_probabilities(const float* p, int64_t n, const SoftmaxBlock& block,
                                     float factor, int32_t* words, float* scales) {
  const Lanes d;
  const float room = integer_limit(1, kIntegers) - static_cast<float>(kKeys) / 2;
  Vec inverse[2];
  for (int v = 0; v < 2; ++v) {
    const Vec sum = hn::Mul(block.total[v], set(factor));  // the second of Min's may be NaN
    inverse[v] = hn::Min(hn::Div(set(kLargest), hn::Mul(block.most[v], set(factor))),
                         hn::Div(set(room), sum));
    hn::StoreU(hn::Div(set(1), inverse[v]), d, scales + v * kLanes);
  }
  for (int64_t i = 0; i < n; i += 2, p += 2 * kQueries, words += kQueries)
    for (int v = 0; v < 2; ++v) {
      const Vec low = hn::Mul(hn::LoadU(d, p + v * kLanes), inverse[v]);
      const Vec high = hn::Mul(hn::LoadU(d, p + kQueries + v * kLanes), inverse[v]);
      hn::StoreU(paired(integers(low), integers(high)), Pairs::WordLanes(), words + v * kLanes);
    }
}
#endif

// What forward keeps of one head, in one thread's memory.
template <class Kind, int64_t kHead>
struct Forward {
  int64_t wide, rows;
  Packed<Kind> keys, values, queries, probabilities;
  typename Kind::Word *query_rows, *temporary;
  float *output, *scores, *table;

  Forward(Pieces& pieces, int64_t T, int64_t D, int64_t offsets)
      : wide(padded(D, kLanes)),
        rows(padded(T, kGroup)),
        keys(pieces, rows * kStep<Kind, kHead>, rows),
        values(pieces, padded(T, kKeys) / Kind::kNumbers * wide, padded(T, kKeys) / kKeys * wide),
        queries(pieces, kQueries * kHead, kQueries),
        probabilities(pieces, Kind::kNumbers == 1 ? 0 : kKeys / 2 * kQueries, kQueries),
        query_rows(pieces.take<typename Kind::Word>(kQueries * kStep<Kind, kHead>)),
        temporary(pieces.take<typename Kind::Word>(kQueries * kHead)),
        output(pieces.take(kQueries * wide)),
        scores(pieces.take(kKeys * kQueries)),
        table(pieces.take(offsets)) {}

  void rows_of(const AttentionHead& h, int64_t first, int64_t last);
  void weigh(int64_t key, int64_t n, const SoftmaxBlock& block);
  void finish(const AttentionHead& h, int64_t query, int64_t count, const Softmax& s);
};

// output [kQueries][wide] = output times shrink + probabilities of n keys from `key` on times
// their values.
template <class Kind, int64_t kHead>
HWY_NOINLINE void Forward<Kind, kHead>::weigh(int64_t key, int64_t n, const SoftmaxBlock& block) {
  const Lanes d;
  const typename Kind::Word* weights;
  if constexpr (Kind::kNumbers == 1)
    weights = scores;
  else
    weights = probabilities.words;
  const float* value_scales = values.scales + key / kKeys * wide;
  product<Kind, 1, kQueries>(
      weights, values.words + key / Kind::kNumbers * wide, wide, kQueries, n / Kind::kNumbers, wide,
      [&](int64_t r, int64_t c, Vec sums) {
        if constexpr (Kind::kNumbers == 2)
          sums =
              hn::Mul(sums, hn::Mul(set(probabilities.scales[r]), hn::LoadU(d, value_scales + c)));
        float* at = output + r * wide + c;
        hn::StoreU(hn::MulAdd(hn::LoadU(d, at), set(block.shrink[r]), sums), d, at);
      });
}

template <class Kind, int64_t kHead>
void Forward<Kind, kHead>::finish(const AttentionHead& h, int64_t query, int64_t count,
                                  const Softmax& s) {
  float shares[kQueries];
  for (int64_t v = 0; v < 2; ++v) {
    hn::StoreU(hn::Div(set(1), s.total[v]), Lanes(), shares + v * kLanes);
    const int64_t there = std::min(count - v * kLanes, kLanes);
    if (there > 0)
      store(hn::MulAdd(s.most[v], set(kLn2), log(s.total[v])), h.lse + query + v * kLanes, there);
  }
  for (int64_t r = 0; r < count; ++r)
    for_vectors(h.D, [&](int64_t c, int64_t n) {
      store(hn::Mul(load(output + r * wide + c, n), set(shares[r])),
            h.y + (query + r) * h.y_stride + c, n);
    });
}

// Queries [first, last).
template <class Kind, int64_t kHead>
void Forward<Kind, kHead>::rows_of(const AttentionHead& h, int64_t first, int64_t last) {
  const int64_t T = h.T, D = h.D;
  const Offsets offsets(first, last, rows);
  if (h.gate) spread_table(h, offsets, table);
  pack_left<Kind, kHead>(h.k, h.qkv_stride, T, D, rows, keys);
  pack_right<Kind>(h.v, h.qkv_stride, T, D, 1, Kind::kNumbers == 1 ? rows : padded(T, kKeys), kKeys,
                   wide, values);
  const float scale = kLog2E / std::sqrt(static_cast<float>(D));
  for (int64_t query = first; query < last; query += kQueries) {
    const int64_t count = std::min(last - query, kQueries);
    fetch_rows(h.q + (query + kQueries) * h.qkv_stride, h.qkv_stride, D);
    pack_queries<Kind, kHead>(h.q + query * h.qkv_stride, h.qkv_stride, count, D, scale, query_rows,
                              temporary, queries);
    std::fill_n(output, kQueries * wide, 0.0f);
    Softmax s{{set(kNever), set(kNever)}, {zero(), zero()}};
    for (int64_t key = 0; key < rows; key += kKeys) {
      const int64_t n = std::min(kKeys, rows - key);
      score_block<Kind, kHead, kQueries>(keys, queries, T, D, key, n, scores);
      if (h.gate)
        add_bias<kQueries>(table + offsets.at(query, key), Gates(h, query, count, kLog2E), n,
                           scores);
      SoftmaxBlock block;
      softmax_block(scores, n, s, block);
      if (h.dropout) drop_block(h, query, key, n, scores);
      if constexpr (Kind::kNumbers == 2)
        pack_probabilities(scores, n, block, h.dropout.scale(), probabilities.words,
                           probabilities.scales);
      weigh(key, n, block);
    }
    finish(h, query, count, s);
  }
}

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

// f of a Forward or Backward for heads of D numbers.
template <template <class, int64_t> class Work, class F>
auto with_work(Math math, int64_t D, Pieces& pieces, int64_t T, bool bias, F&& f) {
  const int64_t offsets = bias ? offsets_at_most(T) : 0;
#if HWY_TARGET == HWY_AVX3
  if (math == Math::fast16)
    return D <= 64 ? f(Work<Pairs, 64>(pieces, T, D, offsets))
                   : f(Work<Pairs, 128>(pieces, T, D, offsets));
#endif
  (void)math;
  return D <= 64 ? f(Work<Single, 64>(pieces, T, D, offsets))
                 : f(Work<Single, 128>(pieces, T, D, offsets));
}

int64_t forward_scratch(Math math, int64_t T, int64_t D, bool bias) {  // numbers
  Pieces pieces(nullptr);
  with_work<Forward>(math, D, pieces, T, bias, [](auto&&) {});
  return pieces.taken();
}

int64_t backward_scratch(Math math, int64_t T, int64_t D, bool bias) {
  Pieces pieces(nullptr);
  with_work<Backward>(math, D, pieces, T, bias, [](auto&&) {});
  return pieces.taken();
}

// Query rows [first, last) of one head.
void forward_rows(Math math, const AttentionHead& h, int64_t first, int64_t last, float* memory) {
  Pieces pieces(memory);
  with_work<Forward>(math, h.D, pieces, h.T, h.gate,
                     [&](auto&& work) { work.rows_of(h, first, last); });
}

void backward_head(Math math, const AttentionHead& h, const AttentionHeadGrads& g, float* memory) {
  Pieces pieces(memory);
  with_work<Backward>(math, h.D, pieces, h.T, h.gate, [&](auto&& work) { work.head(h, g); });
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
  const ThreadMemory memory =
      thread_memory(ctx, HWY_DYNAMIC_DISPATCH(forward_scratch)(ctx.math, segments.longest(), D,
                                                               static_cast<bool>(bias)));
  if (ctx.dry) return out;
  const Heads all{qkv, out.y, out.lse, bias, D, ctx.rng, dropout, segments};
  for_items(items, memory, [&](const Item& item, float* mine) {
    HWY_DYNAMIC_DISPATCH(forward_rows)(ctx.math, all.at(item), item.first, item.last, mine);
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
  const ThreadMemory memory =
      thread_memory(ctx, HWY_DYNAMIC_DISPATCH(backward_scratch)(ctx.math, segments.longest(), D,
                                                                static_cast<bool>(bias)));
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
    HWY_DYNAMIC_DISPATCH(backward_head)(ctx.math, all.at(item), head, mine);
  });
  if (grads.table) sum_table(parts, segments, grads.table);
}

}  // namespace sft
#endif
