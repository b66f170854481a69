// attention_mma.cuh: attention in bf16 on tensor cores (mma.sync, sm_80 and up), after
// FlashAttention-2 (Dao 2023, arXiv:2307.08691).
//
// Layout   head width D, a multiple of 8, padded with zeros to W = 64, 80 or 128. Tiles in shared
//          memory: rows of kStride bf16 (128 or 256 bytes), chunks of 16 bytes xor'ed with a key of
//          the row, so that every ldmatrix touches all 32 banks once per 8 lanes
// Work     4 warps. A warp has 16 M stationary rows (M = 2 where registers allow: a fragment of the
//          streamed tile then feeds two mma; with M = 1 reading it takes longer than the mma).
//          Streamed rows come in stages of 64, the next one by cp.async while this one is worked
//          on, one barrier each; 32 of them are scores in registers at a time, which go on as the A
//          operand of the next product. Warps past the utterance's end only load
// Order    which row of a tile is which row of a fragment is free, if both products agree.
//          Streamed rows are dealt such that lane t of a quad holds rows 8 t ... 8 t + 7 of 32:
//          those of one Philox call; stationary ones such that a lane holds 2 M neighbours
// Cost     of two products of 32 x 32 x 64 in the forward of a warp: 64 mma, 16 ldmatrix, 36 ex2
// and
//          some 200 other instructions (sm_90a, counted in SASS; 265 more with dropout). The mma
//          are what bounds it, at the share of the tensor cores' peak that mma.sync reaches (about
//          0.62 on Hopper, published). W = 64: 168 registers and 48 KB, three blocks on a
//          multiprocessor; backward two blocks, 66688 bytes; W = 80, 128: 80 KB forward, 99456
//          bytes backward. With a bias (W = 64 alone): as many blocks, attention_bias.cuh has more
// Numbers  bf16 products, f32 sums, softmax in base 2. The running maximum of a row follows only
//          when it would grow by more than 2^8: sums stay far from overflow, and rescaling is rare.
//          The same bits every run, and of an utterance alone or in a pack
#pragma once

#include "engine/cuda/attention_bias.cuh"
#include "engine/cuda/ptx.cuh"

namespace sft::cuda {

template <int W>
struct MmaTile {
  static constexpr int kThreads = 128;
  static constexpr int M = W == 64 ? 2 : 1;
  static constexpr int kWarpRows = 16 * M, R = 4 * kWarpRows;  // stationary rows
  static constexpr int kStage = 64, kPart = 32;                // streamed rows
  static constexpr int kStride = W <= 64 ? 64 : 128;
  static constexpr int kSteps = W / 16;  // of a product over the head's width

  using Fragment = uint32_t[M][4];
  using Scores = float[M][4][4];  // of a part: tiles of 16 x 8
  using Sums = float[M][W / 8][4];

  // ---- who has what. Value [m][j][2 h + e] of Scores: row lane_row(m, h) of the warp's, column
  // 8 t + 2 j + e of the part.
  __device__ __forceinline__ static int lane_row(int m, int h) {
    return 2 * M * (lane() / 4) + 2 * m + h;
  }
  __device__ __forceinline__ static int lane_column(int j, int e) {
    return lane() % 4 * 8 + 2 * j + e;
  }

  // Of value k = 16 m + 4 j + 2 h + e, in lane_keeps: 8 (2 m + h) + 2 j + e.
  __device__ __forceinline__ static constexpr int keep_bit(int k) {
    return 16 * (k / 16) + 8 * (k / 2 % 2) + 2 * (k / 4 % 4) + k % 2;
  }

  __device__ __forceinline__ static int stationary_key(int row) { return row / (2 * M) & 7; }
  __device__ __forceinline__ static int streamed_key(int row) {
    return (row & 1) | (row >> 3 & 3) << 1;
  }

  // Rows of a head into a tile; zeros in place of those from `there` on, and of columns past D.
  // Keys are sets of a row's bits: key(r + i) = key(r) ^ key(i), and key(i) is a constant here.
  template <int kRows, class Key>
  __device__ __forceinline__ static void copy(bf16* tile, const bf16* from, int64_t row_stride,
                                              int there, int D, Key key) {
    constexpr int kChunks = kStride / 8, kPass = kThreads / kChunks;
    const int stride = static_cast<int>(row_stride), thread = thread_anew();
    const int r = thread / kChunks, c = thread % kChunks, chunk = c ^ key(r);
    if (c >= W / 8) return;
    if (c * 8 >= D) there = 0;
    int at = r * stride + c * 8;
#pragma unroll 2  // whole, it spills on sm_80
    for (int i = 0; i < kRows; i += kPass, at += kPass * stride)
      cp_async_16(tile + (r + i) * kStride + (chunk ^ key(i)) * 8, from + at, r + i < there);
  }

  // A fragments of this warp's rows, columns 16 step ... + 15.
  __device__ __forceinline__ static void load_a(Fragment& a, const bf16* tile, int step) {
    const int l = lane(), r = warp() * kWarpRows + 2 * M * (l & 7) + (l >> 3 & 1);
    const bf16* at = tile + r * kStride + ((2 * step + (l >> 4)) ^ (l & 7)) * 8;
#pragma unroll
    for (int m = 0; m < M; ++m) ldmatrix_x4(a[m], at + 2 * m * kStride);
  }

  // scores += a b^T over one step; part: its first row in the streamed tile.
  __device__ __forceinline__ static void multiply(const Fragment& a, const bf16* part, int step,
                                                  Scores& scores) {
    const int l = lane(), c = l & 7, r = 8 * (c >> 1) + (c & 1) + 2 * (l >> 4);
    const bf16* at = part + r * kStride + ((2 * step + (l >> 3 & 1)) ^ c) * 8;
#pragma unroll
    for (int j = 0; j < 4; j += 2) {
      uint32_t b[4];
      ldmatrix_x4(b, at + 2 * j * kStride);
      const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
#pragma unroll
      for (int m = 0; m < M; ++m) {
        mma_m16n8k16_bf16(scores[m][j], a[m], b0);
        mma_m16n8k16_bf16(scores[m][j + 1], a[m], b1);
      }
    }
  }

  // sums += scores b, scores rounded to bf16.
  __device__ __forceinline__ static void accumulate(const Scores& scores, const bf16* part,
                                                    Sums& sums) {
    const int l = lane(), c = l & 7, r = 8 * (c >> 1) + (c & 1) + 2 * (l >> 3 & 1);
#pragma unroll
    for (int k = 0; k < 2; ++k) {
      Fragment a;
#pragma unroll
      for (int m = 0; m < M; ++m)
#pragma unroll
        for (int i = 0; i < 4; ++i)
          a[m][i] = pack_bf16(scores[m][2 * k + i / 2][i % 2 * 2],
                              scores[m][2 * k + i / 2][i % 2 * 2 + 1]);
#pragma unroll
      for (int n = 0; n < W / 8; n += 2) {
        uint32_t b[4];
        ldmatrix_x4_trans(b, part + (r + 4 * k) * kStride + ((n + (l >> 4)) ^ c) * 8);
        const uint32_t b0[2] = {b[0], b[1]}, b1[2] = {b[2], b[3]};
#pragma unroll
        for (int m = 0; m < M; ++m) {
          mma_m16n8k16_bf16(sums[m][n], a[m], b0);
          mma_m16n8k16_bf16(sums[m][n + 1], a[m], b1);
        }
      }
    }
  }

  // Neighbours in shared memory, 16 bytes at a time.
  template <int N>
  struct Neighbours {
    float v[N];

    __device__ __forceinline__ explicit Neighbours(const float* from) {
#pragma unroll
      for (int k = 0; k < N; k += 4) {
        const float4 four = *reinterpret_cast<const float4*>(from + k);
        v[k] = four.x, v[k + 1] = four.y, v[k + 2] = four.z, v[k + 3] = four.w;
      }
    }
  };

  // Entries of a stage's window for a part: v[c - i + 3] is of the lane's row i = 2 m + h and
  // column c. M is 2. Conflict-free: 8 lanes that read together read 8 neighbours of 16 bytes.
  __device__ __forceinline__ static const float* lane_window(const float* window, int part) {
    const int thread = thread_anew();
    return window + part + thread % 4 * 8 - thread / 4 * 4 + R - 4;
  }

  // f(i, c, value) for a lane's scores: rows i = 2 m + h, columns c = 2 j + e.
  template <class S, class F>
  __device__ __forceinline__ static void for_scores(S& scores, F&& f) {
#pragma unroll
    for (int i = 0; i < 2 * M; ++i)
#pragma unroll
      for (int c = 0; c < 8; ++c) f(i, c, scores[i / 2][c / 2][i % 2 * 2 + c % 2]);
  }

  // scores += gate(i, c) times the window's entry, of which four at a time are in registers.
  template <class Gate>
  __device__ __forceinline__ static void add_bias(const float* window, int part, float unit,
                                                  Scores& scores, Gate gate) {
    const float* from = lane_window(window, part);
#pragma unroll
    for (int k = 0; k < 12; k += 4) {
      Neighbours<4> four(from + k);
      for (float& x : four.v) x *= unit;
      for_scores(scores, [&](int i, int c, float& s) {
        const int x = c - i + 3 - k;
        if (x >= 0 && x < 4) s += gate(i, c) * four.v[x & 3];
      });
    }
  }

  // Gates of the block's queries; of the lane's rows, a barrier later.
  __device__ __forceinline__ static void keep_gates(const AttentionBatch& batch,
                                                    const AttentionBias& bias,
                                                    const AttentionBlock& block, float* to) {
    static_assert(M == 1 || kThreads == R);
    const int r = static_cast<int>(threadIdx.x);
    const bool there = block.first + r < block.T;
    to[r] = there ? bias.gate[bias.first_gate(batch, block) + block.first + r] : 0;
  }
  __device__ __forceinline__ static Neighbours<4> lane_gates(const float* gates) {
    return Neighbours<4>(gates + thread_anew() / 4 * 4);
  }

  // factor[2 m + h] sums of the warp's rows to rows of a head, in whole chunks, by way of this
  // warp's rows of a stationary tile, which it has read. `there`: of its rows, in the utterance.
  __device__ __forceinline__ static void store(const Sums& sums, const float (&factor)[2 * M],
                                               bf16* tile, bf16* to, int64_t stride, int there,
                                               int D, bool add) {
    const int l = lane();
    tile += warp() * kWarpRows * kStride;
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int n = 0; n < W / 8; ++n) {
          const int r = lane_row(m, h);
          const float f = factor[2 * m + h];
          *reinterpret_cast<uint32_t*>(tile + r * kStride + (n ^ stationary_key(r)) * 8 +
                                       l % 4 * 2) =
              pack_bf16(sums[m][n][2 * h] * f, sums[m][n][2 * h + 1] * f);
        }
    __syncwarp();
    for (int i = l; i < kWarpRows * (W / 8); i += 32) {
      const int r = i / (W / 8), c = i % (W / 8);
      if (r >= there || c * 8 >= D) continue;
      Float8 value = load8(tile + r * kStride + (c ^ stationary_key(r)) * 8);
      if (add) {
        const Float8 old = load8(to + r * stride + c * 8);
        for (int k = 0; k < 8; ++k) value.v[k] += old.v[k];
      }
      store8(to + r * stride + c * 8, value);
    }
  }

  // Over the four lanes of a row.
  template <class Op>
  __device__ __forceinline__ static float over_row(float value) {
    value = Op{}(value, __shfl_xor_sync(~0u, value, 1));
    return Op{}(value, __shfl_xor_sync(~0u, value, 2));
  }
};

template <int W, bool Biased>
struct MmaForwardShared {
  using Tile = MmaTile<W>;
  alignas(128) bf16 q[Tile::R * Tile::kStride];
  alignas(128) bf16 k[2][Tile::kStage * Tile::kStride];
  alignas(128) bf16 v[2][Tile::kStage * Tile::kStride];
};

template <int W>
struct MmaForwardShared<W, true> : MmaForwardShared<W, false> {
  using Tile = MmaTile<W>;
  alignas(16) float window[2][Tile::R + Tile::kStage];
  alignas(16) float gates[Tile::R];
};

struct AsyncCopy {
  __device__ __forceinline__ void operator()(float* to, const float* from) const {
    cp_async_4(to, from, true);
  }
};

// The softmax of a lane's rows so far.
template <int M>
struct MmaSoftmax {
  float most[2 * M],
      total[2 * M];  // most: of scores before the scale; total: of this lane's columns

  // scores (before the scale) -> exp2(scale (score - most)); sums follow the maximum.
  template <class Tile>
  __device__ __forceinline__ void step(typename Tile::Scores& scores, float scale,
                                       typename Tile::Sums& sums) {
    float shrink[2 * M];
    bool grows = false;
#pragma unroll
    for (int i = 0; i < 2 * M; ++i) {
      float top = most[i];
#pragma unroll
      for (int j = 0; j < 4; ++j)
        top = fmaxf(top, fmaxf(scores[i / 2][j][i % 2 * 2], scores[i / 2][j][i % 2 * 2 + 1]));
      top = Tile::template over_row<Max>(top);
      const bool follow = (top - most[i]) * scale > 8;
      shrink[i] = follow ? exp2_fast((most[i] - top) * scale) : 1;
      if (follow) most[i] = top;
      grows |= follow;
    }
    if (__any_sync(~0u, grows)) {
#pragma unroll
      for (int i = 0; i < 2 * M; ++i) {
        total[i] *= shrink[i];
#pragma unroll
        for (auto& sum : sums[i / 2]) sum[i % 2 * 2] *= shrink[i], sum[i % 2 * 2 + 1] *= shrink[i];
      }
    }
#pragma unroll
    for (int i = 0; i < 2 * M; ++i) {
      const float shift = most[i] * scale;
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& p = scores[i / 2][j][i % 2 * 2 + e];
          p = exp2_fast(p * scale - shift);
          total[i] += p;
        }
    }
  }
};

template <int W, bool Biased>
__global__ void __launch_bounds__(128, W == 64 ? 3 : 2)
    attention_mma_forward_kernel(AttentionBatch batch, AttentionBias bias, Matrix<bf16> qkv,
                                 Matrix<bf16> y, float* lse) {
  using Tile = MmaTile<W>;
  constexpr int M = Tile::M;
  const AttentionBlock block(batch, Tile::R);
  if (block.first >= block.T) return;
  auto& shared = shared_memory<MmaForwardShared<W, Biased>>();
  const KeepMask mask{batch.dropout, block};
  const int D = batch.D, own = block.first + warp() * Tile::kWarpRows;  // this warp's rows
  const float scale = batch.scale() * kLog2e;
  const bf16* q = qkv.row(block.start) + int64_t{block.head} * D;
  const bf16* k = q + batch.C();
  const auto load_stage = [&](int key) {
    const int stage = key / Tile::kStage % 2, there = block.T - key;
    const bf16* from = k + key * qkv.stride;
    Tile::template copy<Tile::kStage>(shared.k[stage], from, qkv.stride, there, D,
                                      Tile::streamed_key);
    Tile::template copy<Tile::kStage>(shared.v[stage], from + batch.C(), qkv.stride, there, D,
                                      Tile::streamed_key);
    if constexpr (Biased)
      bias.window(block.head, key - block.first - (Tile::R - 1), false, Tile::R + Tile::kStage,
                  shared.window[stage], AsyncCopy());
    cp_async_commit();
  };
  Tile::template copy<Tile::R>(shared.q, q + block.first * qkv.stride, qkv.stride,
                               block.T - block.first, D, Tile::stationary_key);
  load_stage(0);
  if constexpr (Biased) Tile::keep_gates(batch, bias, block, shared.gates);
  cp_async_wait<0>();
  __syncthreads();
  typename Tile::Fragment queries[Tile::kSteps];
#pragma unroll
  for (int step = 0; step < Tile::kSteps; ++step) Tile::load_a(queries[step], shared.q, step);
  typename Tile::Sums sums = {};
  MmaSoftmax<M> softmax;
  for (int i = 0; i < 2 * M; ++i) softmax.most[i] = -INFINITY, softmax.total[i] = 0;
  for (int first = 0; first < block.T; first += Tile::kStage) {
    cp_async_wait<0>();
    __syncthreads();  // this stage is there for all, and the last one is read
    if (first + Tile::kStage < block.T) load_stage(first + Tile::kStage);
    if (own >= block.T) continue;
    const int stage = first / Tile::kStage % 2;
#pragma unroll 1
    for (int key = first; key < min(first + Tile::kStage, block.T); key += Tile::kPart) {
      const int offset = (key - first) * Tile::kStride, there = block.T - key;
      typename Tile::Scores scores = {};
#pragma unroll
      for (int step = 0; step < Tile::kSteps; ++step)
        Tile::multiply(queries[step], shared.k[stage] + offset, step, scores);
      if constexpr (Biased) {
        const auto gates = Tile::lane_gates(shared.gates);
        Tile::add_bias(shared.window[stage], key - first, bias.unit, scores,
                       [&](int i, int) { return gates.v[i]; });
      }
      if (there < Tile::kPart)
#pragma unroll
        for (int i = 0; i < M * 16; ++i)
          if (Tile::lane_column(i / 4 % 4, i % 2) >= there)
            scores[i / 16][i / 4 % 4][i % 4] = -INFINITY;
      softmax.template step<Tile>(scores, scale, sums);
      if (mask)
#pragma unroll
        for (int i = 0; i < 2 * M; ++i) {
          const PhiloxWords words =
              mask.words(own + Tile::lane_row(i / 2, i % 2), key / 8 + lane() % 4);
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            float(&p)[4] = scores[i / 2][j];
            if (!mask.keep_low(words[j])) p[i % 2 * 2] = 0;
            if (!mask.keep_high(words[j])) p[i % 2 * 2 + 1] = 0;
          }
        }
      Tile::accumulate(scores, shared.v[stage] + offset, sums);
    }
  }
  if (own >= block.T) return;
  float factor[2 * M];
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) {
    const float total = Tile::template over_row<Add>(softmax.total[i]);
    factor[i] = batch.dropout.scale / total;
    const int row = own + Tile::lane_row(i / 2, i % 2);
    if (lane() % 4 == 0 && row < block.T)
      lse[block.head * batch.frames + block.start + row] =
          (softmax.most[i] * scale + __log2f(total)) * kLn2;
  }
  Tile::store(sums, factor, shared.q, y.row(block.start + own) + int64_t{block.head} * D, y.stride,
              block.T - own, D, false);
}

template <int W, bool Biased>
struct MmaBackwardShared {
  using Tile = MmaTile<W>;
  alignas(128) bf16 a0[Tile::R * Tile::kStride];
  alignas(128) bf16 a1[Tile::R * Tile::kStride];
  alignas(128) bf16 b0[2][Tile::kStage * Tile::kStride];
  alignas(128) bf16 b1[2][Tile::kStage * Tile::kStride];
  alignas(16) QuerySums sums[2][Tile::kStage + 2];
};

template <int W>
struct MmaBackwardShared<W, true> : MmaBackwardShared<W, false> {
  using Tile = MmaTile<W>;
  alignas(16) float window[2][Tile::R + Tile::kStage];
  alignas(16) float gates[2][Tile::kStage];  // of the queries, if they stream: of two stages
  alignas(16) float diagonals[4][4 * 104];   // of a warp: [t][3][g][4], t 104 apart
};

// What a warp's queries add to the gradients of their gates and of the table, part by part of keys.
// The plain one does nothing: no bias, or queries stream.
template <int W, bool kWanted>
struct MmaBiasGradients {
  template <class... Args>
  __device__ explicit MmaBiasGradients(Args&&...) {}
  template <class... Args>
  __device__ void step(Args&&...) {}
  __device__ void finish() {}
};

template <int W>
struct MmaBiasGradients<W, true> {
  using Tile = MmaTile<W>;
  static constexpr int kRows = Tile::kWarpRows;
  static_assert(kRows == 32 && Tile::kPart == 32);

  MmaBackwardShared<W, true>& shared;
  const AttentionBatch& batch;
  const AttentionBias& bias;
  const AttentionBlock& block;
  DiagonalSums sums;
  float2 open = {0, 0};  // this lane's diagonals 2 l and 2 l + 1 of the last part
  int own, next = 0;     // the warp's first query, the last part's first key
  float dgate[4] = {};

  __device__ MmaBiasGradients(MmaBackwardShared<W, true>& shared, const AttentionBatch& batch,
                              const AttentionBias& bias, const AttentionBlock& block, int own)
      : shared(shared),
        batch(batch),
        bias(bias),
        block(block),
        sums(bias, block, own, kRows),
        own(own) {}

  __device__ __forceinline__ void emit() {
    const int distance = next - own + 2 * lane() - (kRows - 1);
    sums.emit(distance, open.x), sums.emit(distance + 1, open.y);
  }
  // A lane's sums of its 11 diagonals, by 4 in memory where those of other lanes that are the same
  // are found without bank conflicts: lane (g, t) has chunks 2 t - g + 7 ... + 9 of 16.
  __device__ __forceinline__ float2 gather(const float (&mine)[12]) {
    const int g = lane() / 4, t = lane() % 4, chunk = lane() / 2, half = lane() % 2 * 2;
    float* memory = shared.diagonals[warp()];
    __syncwarp();  // what lay here has been read
#pragma unroll
    for (int k = 0; k < 3; ++k)
      *reinterpret_cast<float4*>(memory + t * 104 + k * 32 + g * 4) =
          make_float4(mine[4 * k], mine[4 * k + 1], mine[4 * k + 2], mine[4 * k + 3]);
    __syncwarp();
    float2 total = {0, 0};
#pragma unroll
    for (int from = 0; from < 4; ++from)
#pragma unroll
      for (int k = 0; k < 3; ++k) {
        const int row = 2 * from + 7 + k - chunk;
        if (row < 0 || row > 7) continue;
        const float2 two =
            *reinterpret_cast<const float2*>(memory + from * 104 + k * 32 + row * 4 + half);
        total.x += two.x, total.y += two.y;
      }
    return total;
  }
  __device__ __forceinline__ void step(typename Tile::Scores& slopes, int stage, int part,
                                       int key) {
    const typename Tile::template Neighbours<12> distances(
        Tile::lane_window(shared.window[stage], part));
    const auto gates = Tile::lane_gates(shared.gates[0]);
    float diagonals[12] = {};
    Tile::for_scores(slopes, [&](int i, int c, float slope) {
      dgate[i] += slope * distances.v[c - i + 3];
      diagonals[c - i + 3] += slope * gates.v[i];
    });
    if (!sums.row) return;
    const float2 now = gather(diagonals);
    const float2 passed = {__shfl_down_sync(~0u, open.x, 16), __shfl_down_sync(~0u, open.y, 16)};
    next = key;
    open = now;
    if (lane() >= 16) return;
    open.x += passed.x, open.y += passed.y;
    emit();
  }
  __device__ __forceinline__ void finish() {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float total = Tile::template over_row<Add>(dgate[i]);
      const int row = own + Tile::lane_row(i / 2, i % 2);
      if (!bias.dgate || lane() % 4 != 0 || row >= block.T) continue;
      float& to = bias.dgate[block.head * batch.frames + block.start + row];
      to = bias.dgate_add ? to + total : total;
    }
    if (!sums.row) return;
    if (lane() >= 16) emit();
    const float below = warp_sum(sums.below), above = warp_sum(sums.above);
    if (lane() == 0) sums.row[0] = below, sums.row[2 * sums.reach] = above;
  }
};

// Which of a lane's probabilities are kept: bit 8 i + c is row 2 m + h = i, column 2 j + e = c.
template <class Tile, bool Keys>
__device__ __forceinline__ uint32_t lane_keeps(const KeepMask& mask, int own, int next) {
  constexpr int M = Tile::M;
  uint32_t keeps = 0;
  const auto add = [&](uint32_t word, int low, int high) {
    keeps |= (mask.keep_low(word) ? 1u << low : 0u) | (mask.keep_high(word) ? 1u << high : 0u);
  };
  if constexpr (!Keys) {  // a row's columns are one call
#pragma unroll
    for (int i = 0; i < 2 * M; ++i) {
      const PhiloxWords words =
          mask.words(own + Tile::lane_row(i / 2, i % 2), next / 8 + lane() % 4);
#pragma unroll
      for (int j = 0; j < 4; ++j) add(words[j], 8 * i + 2 * j, 8 * i + 2 * j + 1);
    }
  } else if constexpr (M == 2) {  // a column's rows are half a call: the lane beside has the other
    const bool odd = lane() / 4 % 2;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const PhiloxWords words =
          mask.words(next + Tile::lane_column(j, odd), (own + Tile::lane_row(0, 0)) / 8);
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const uint32_t mine = odd ? words[2 + m] : words[m];
        const uint32_t other = __shfl_xor_sync(~0u, odd ? words[m] : words[2 + m], 4);
        add(odd ? other : mine, 16 * m + 2 * j, 16 * m + 8 + 2 * j);
        add(odd ? mine : other, 16 * m + 2 * j + 1, 16 * m + 8 + 2 * j + 1);
      }
    }
  } else {  // a word of a call
    const int row = Tile::lane_row(0, 0), word = row % 8 / 2;
#pragma unroll
    for (int c = 0; c < 8; ++c) {
      const PhiloxWords words = mask.words(next + Tile::lane_column(c / 2, c % 2), (own + row) / 8);
      const uint32_t low = word % 2 ? words[1] : words[0], high = word % 2 ? words[3] : words[2];
      add(word < 2 ? low : high, c, 8 + c);
    }
  }
  return keeps;
}

// Keys: k and v stay, q and dy stream past, dk and dv come out. Otherwise q and dy stay, k and v
// stream past, dq comes out. Scores, and slopes dp = a1 b1^T, become probabilities p and
// p (keep scale dp - delta); those times b0 are dk or dq, and p (after dropout) times b1 is dv.
template <int W, bool Keys, bool Biased>
__global__ void __launch_bounds__(128, 2)
    attention_mma_backward_kernel(AttentionBatch batch, AttentionBias bias, Matrix<bf16> qkv,
                                  Matrix<bf16> dy, const QuerySums* query_sums, Matrix<bf16> dqkv,
                                  bool add) {
  using Tile = MmaTile<W>;
  constexpr int M = Tile::M;
  const AttentionBlock block(batch, Tile::R);
  if (block.first >= block.T) return;
  auto& shared = shared_memory<MmaBackwardShared<W, Biased>>();
  const KeepMask mask{batch.dropout, block};
  const int D = batch.D, own = block.first + warp() * Tile::kWarpRows;  // this warp's rows
  const int64_t column = int64_t{block.head} * D, C = batch.C();
  const float scale = batch.scale();
  const bf16* q = qkv.row(block.start) + column;
  const bf16* gradient = dy.row(block.start) + column;
  const bf16 *a0 = Keys ? q + C : q, *a1 = Keys ? q + 2 * C : gradient;
  const bf16 *b0 = Keys ? q : q + C, *b1 = Keys ? gradient : q + 2 * C;
  const int64_t a1_stride = Keys ? qkv.stride : dy.stride,
                b1_stride = Keys ? dy.stride : qkv.stride;
  // Sums come two at a time: those of an odd start from one before.
  const QuerySums* sums_of = query_sums + block.head * batch.sums_stride() + block.start;
  const int odd = static_cast<int>(block.start % 2);
  const auto load_stage = [&](int row) {
    const int stage = row / Tile::kStage % 2, there = block.T - row;
    Tile::template copy<Tile::kStage>(shared.b0[stage], b0 + row * qkv.stride, qkv.stride, there, D,
                                      Tile::streamed_key);
    Tile::template copy<Tile::kStage>(shared.b1[stage], b1 + row * b1_stride, b1_stride, there, D,
                                      Tile::streamed_key);
    const int two = static_cast<int>(threadIdx.x) * 2;
    if (Keys && two < Tile::kStage + 2)
      cp_async_16(shared.sums[stage] + two, sums_of + (row - odd + two), two - odd < there);
    if constexpr (Biased) {
      bias.window(block.head, row - block.first - (Tile::R - 1), Keys, Tile::R + Tile::kStage,
                  shared.window[stage], AsyncCopy());
      const int query = thread_anew();
      if (Keys && query < Tile::kStage)
        cp_async_4(shared.gates[stage] + query,
                   bias.gate + (bias.first_gate(batch, block) + row + query), query < there);
    }
    cp_async_commit();
  };
  Tile::template copy<Tile::R>(shared.a0, a0 + block.first * qkv.stride, qkv.stride,
                               block.T - block.first, D, Tile::stationary_key);
  Tile::template copy<Tile::R>(shared.a1, a1 + block.first * a1_stride, a1_stride,
                               block.T - block.first, D, Tile::stationary_key);
  load_stage(0);
  QuerySums row_sums[2 * M];
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) {
    const int row = own + Tile::lane_row(i / 2, i % 2);
    row_sums[i] = !Keys && row < block.T ? sums_of[row] : QuerySums{0, 0};
  }
  typename Tile::Sums sums0 = {}, sums1 = {};
  if constexpr (Biased && !Keys) Tile::keep_gates(batch, bias, block, shared.gates[0]);
  MmaBiasGradients<W, Biased && !Keys> bias_gradients(shared, batch, bias, block, own);
  for (int first = 0; first < block.T; first += Tile::kStage) {
    cp_async_wait<0>();
    __syncthreads();  // this stage is there for all, and the last one is read
    if (first + Tile::kStage < block.T) load_stage(first + Tile::kStage);
    if (own >= block.T) continue;
    const int stage = first / Tile::kStage % 2;
#pragma unroll 1
    for (int next = first; next < min(first + Tile::kStage, block.T); next += Tile::kPart) {
      const bf16* part0 = shared.b0[stage] + (next - first) * Tile::kStride;
      const bf16* part1 = shared.b1[stage] + (next - first) * Tile::kStride;
      typename Tile::Scores scores = {}, slopes = {};
#pragma unroll
      for (int step = 0; step < Tile::kSteps; ++step) {
        typename Tile::Fragment a;
        Tile::load_a(a, shared.a0, step);
        Tile::multiply(a, part0, step, scores);
      }
      if constexpr (Biased) {
        const float* window = shared.window[stage];
        if constexpr (Keys) {
          const float* gates = shared.gates[stage] + next - first + thread_anew() % 4 * 8;
          Tile::add_bias(window, next - first, bias.unit, scores,
                         [&](int, int c) { return gates[c]; });
        } else {
          const auto gates = Tile::lane_gates(shared.gates[0]);
          Tile::add_bias(window, next - first, bias.unit, scores,
                         [&](int i, int) { return gates.v[i]; });
        }
      }
#pragma unroll
      for (int step = 0; step < Tile::kSteps; ++step) {
        typename Tile::Fragment a;
        Tile::load_a(a, shared.a1, step);
        Tile::multiply(a, part1, step, slopes);
      }
      uint32_t keeps = ~0u;
      if (mask) {
        keeps = lane_keeps<Tile, Keys>(mask, own, next);
#pragma unroll
        for (int k = 0; k < 16 * M; ++k)
          if (!(keeps >> Tile::keep_bit(k) & 1)) slopes[k / 16][k / 4 % 4][k % 4] = 0;
      }
#pragma unroll
      for (int c = 0; c < 8; ++c) {
        QuerySums of{};
        if (Keys) of = shared.sums[stage][odd + next - first + Tile::lane_column(c / 2, c % 2)];
#pragma unroll
        for (int i = 0; i < 2 * M; ++i) {
          if (!Keys) of = row_sums[i];
          float& p = scores[i / 2][c / 2][i % 2 * 2 + c % 2];
          float& slope = slopes[i / 2][c / 2][i % 2 * 2 + c % 2];
          p = exp2_fast(p * (scale * kLog2e) - of.x);
          slope = p * (slope * batch.dropout.scale - of.y);
        }
      }
      if (const int there = block.T - next; there < Tile::kPart)  // also: sums past T are anything
#pragma unroll
        for (int k = 0; k < 16 * M; ++k)
          if (Tile::lane_column(k / 4 % 4, k % 2) >= there)
            scores[k / 16][k / 4 % 4][k % 4] = slopes[k / 16][k / 4 % 4][k % 4] = 0;
      if (Keys && mask)
#pragma unroll
        for (int k = 0; k < 16 * M; ++k)
          if (!(keeps >> Tile::keep_bit(k) & 1)) scores[k / 16][k / 4 % 4][k % 4] = 0;
      bias_gradients.step(slopes, stage, next - first, next);
      Tile::accumulate(slopes, part0, sums0);
      if (Keys) Tile::accumulate(scores, part1, sums1);
    }
  }
  if (own >= block.T) return;
  bias_gradients.finish();
  if (!dqkv.data) return;
  float factor0[2 * M], factor1[2 * M];
#pragma unroll
  for (int i = 0; i < 2 * M; ++i) factor0[i] = scale, factor1[i] = batch.dropout.scale;
  bf16* to = dqkv.row(block.start + own) + column;
  Tile::store(sums0, factor0, shared.a0, Keys ? to + C : to, dqkv.stride, block.T - own, D, add);
  if (Keys) Tile::store(sums1, factor1, shared.a1, to + 2 * C, dqkv.stride, block.T - own, D, add);
}

}  // namespace sft::cuda
