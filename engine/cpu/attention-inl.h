// Forward attention of one head on the CPU (engine/ops/attention.h), and what its way back shares.
// Included like simd-inl.h.
//
// Scores are made transposed, [keys][queries], with a few queries along the lanes: so the softmax
// runs down columns, without sums across lanes, and the eight numbers of one Philox call are eight
// keys of a lane. What is summed over keys after it is made as it is kept, [queries][D]. Scores are
// in units of ln 2.
#if defined(SFT_ATTENTION_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef SFT_ATTENTION_INL_H
#undef SFT_ATTENTION_INL_H
#else
#define SFT_ATTENTION_INL_H
#endif

#include "engine/cpu/attention_head.h"
#include "engine/cpu/pairs-inl.h"
#include "engine/cpu/philox-inl.h"
#include "engine/cpu/tile-inl.h"
#include "engine/cpu/vector_math-inl.h"

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

}  // namespace
}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif
