// attention_fma.cuh: attention in f32, by plain multiply-adds. The reference of attention_mma.cuh,
// and what f32 activations and head widths that are no multiple of 8 take.
//
// Layout   T: float or bf16, converted to f32 on the way to shared memory. Stationary tiles [R, W]
//          and streamed tiles [N, W] of rows W + 4 floats apart: eight lanes that read four floats
//          each of eight rows touch all 32 banks once
// Work     256 threads as 16 x 16: thread (y, x) has rows y + 16 i, columns x + 16 j of the scores,
//          and rows y + 16 i, columns 4 x + 64 g ... + 3 of the sums. Rows of scores belong to half
//          a warp, so they pass from one product to the next without a barrier
// Cost     per 16 bytes of shared memory read 4 to 8 multiply-adds: bound by the FMA pipe and
// shared
//          memory alike
// Numbers  f32, sums in ascending order of the streamed rows; the same bits every run
#pragma once

#include "engine/cuda/attention_bias.cuh"

namespace sft::cuda {

// W: head width rounded up, 64 or 128.
template <int W>
struct FmaTile {
  static constexpr int kThreads = 256;
  static constexpr int R = W == 64 ? 64 : 32;  // stationary rows
  static constexpr int N = 32;                 // streamed rows
  static constexpr int I = R / 16, J = N / 16, G = W / 64;
  static constexpr int kStride = W + 4, kScores = N + 4;

  using Scores = float[I][J];
  using Sums = float[I][G][4];

  __device__ __forceinline__ static int x() { return static_cast<int>(threadIdx.x) % 16; }
  __device__ __forceinline__ static int y() { return static_cast<int>(threadIdx.x) / 16; }

  // `rows` rows of a head, `there` of them in the utterance: zeros in place of the others and past
  // D.
  template <class T>
  __device__ __forceinline__ static void load(Matrix<T> from, int64_t row, int64_t column, int rows,
                                              int there, int D, float* to) {
    for (int i = static_cast<int>(threadIdx.x); i < rows * (W / 8); i += kThreads) {
      const int r = i / (W / 8), c = i % (W / 8) * 8;
      Float8 value{};
      if (r < there && c < D) value = load_row(from.row(row + r) + column, c, D, from.whole);
      store8(to + r * kStride + c, value);
    }
  }

  // scores = a b^T
  __device__ __forceinline__ static void multiply(const float* a, const float* b, Scores& scores) {
    for (int i = 0; i < I; ++i)
      for (int j = 0; j < J; ++j) scores[i][j] = 0;
#pragma unroll 4
    for (int d = 0; d < W; d += 4) {
      float4 row[I], column[J];
#pragma unroll
      for (int i = 0; i < I; ++i)
        row[i] = *reinterpret_cast<const float4*>(a + (i * 16 + y()) * kStride + d);
#pragma unroll
      for (int j = 0; j < J; ++j)
        column[j] = *reinterpret_cast<const float4*>(b + (j * 16 + x()) * kStride + d);
#pragma unroll
      for (int i = 0; i < I; ++i)
#pragma unroll
        for (int j = 0; j < J; ++j)
          scores[i][j] += row[i].x * column[j].x + row[i].y * column[j].y + row[i].z * column[j].z +
                          row[i].w * column[j].w;
    }
  }

  __device__ __forceinline__ static float& score_at(float* scores, int i, int j) {
    return scores[(i * 16 + y()) * kScores + j * 16 + x()];
  }

  // scores += gate times the window's entry; gates [R] of rows, or [N] of columns.
  template <bool kOfColumns>
  __device__ __forceinline__ static void add_bias(const float* gates, const float* window,
                                                  float unit, Scores& scores) {
#pragma unroll
    for (int i = 0; i < I; ++i)
#pragma unroll
      for (int j = 0; j < J; ++j) {
        const int r = i * 16 + y(), c = j * 16 + x();
        scores[i][j] += gates[kOfColumns ? c : r] * (unit * window[c - r + R - 1]);
      }
  }

  // Diagonal x of scores [R, N] in shared memory, that of column - row = x - R + 1, each row times
  // its gate.
  __device__ __forceinline__ static float diagonal(const float* scores, const float* gates, int x) {
    const int shift = x - (R - 1);
    float sum = 0;
    for (int r = max(0, -shift); r < min(R, N - shift); ++r)
      sum += gates[r] * scores[r * kScores + r + shift];
    return sum;
  }

  // Of `rows` queries from `first` on.
  __device__ __forceinline__ static void load_gates(const float* gates, int first, int rows,
                                                    int there, float* to) {
    for (int i = static_cast<int>(threadIdx.x); i < rows; i += kThreads)
      to[i] = i < there ? gates[first + i] : 0.0f;
  }

  // sums += scores b; scores [R, N] in shared memory
  __device__ __forceinline__ static void accumulate(const float* scores, const float* b,
                                                    Sums& sums) {
#pragma unroll 2
    for (int n = 0; n < N; n += 4) {
      float4 score[I];
#pragma unroll
      for (int i = 0; i < I; ++i)
        score[i] = *reinterpret_cast<const float4*>(scores + (i * 16 + y()) * kScores + n);
#pragma unroll
      for (int g = 0; g < G; ++g)
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const float4 v =
              *reinterpret_cast<const float4*>(b + (n + k) * kStride + g * 64 + x() * 4);
#pragma unroll
          for (int i = 0; i < I; ++i) {
            const float p = k == 0   ? score[i].x
                            : k == 1 ? score[i].y
                            : k == 2 ? score[i].z
                                     : score[i].w;
            sums[i][g][0] += p * v.x, sums[i][g][1] += p * v.y;
            sums[i][g][2] += p * v.z, sums[i][g][3] += p * v.w;
          }
        }
    }
  }

  // factor[i] sums, of the rows that are there.
  template <class T>
  __device__ __forceinline__ static void store(const Sums& sums, const float (&factor)[I],
                                               Matrix<T> to, int64_t row, int64_t column, int there,
                                               int D, bool add) {
    for (int i = 0; i < I; ++i) {
      const int r = i * 16 + y();
      if (r >= there) continue;
      for (int g = 0; g < G; ++g)
        for (int e = 0; e < 4; ++e) {
          const int c = g * 64 + x() * 4 + e;
          if (c >= D) continue;
          T& at = to.row(row + r)[column + c];
          at = from_float<T>(sums[i][g][e] * factor[i] + (add ? to_float(at) : 0.0f));
        }
    }
  }

  // Over the 16 threads of a row.
  template <class Op>
  __device__ __forceinline__ static float over_row(float value) {
#pragma unroll
    for (int bit = 8; bit > 0; bit /= 2) value = Op{}(value, __shfl_xor_sync(~0u, value, bit));
    return value;
  }

  // keep [R or N rows of queries][keys / 8]: a bit per key. Queries from `query`, keys from `key`.
  __device__ __forceinline__ static void load_mask(const KeepMask& mask, int query, int queries,
                                                   int key, int keys, uint8_t* keep) {
    const int groups = keys / 8;
    for (int i = static_cast<int>(threadIdx.x); i < queries * groups; i += kThreads) {
      const PhiloxWords words = mask.words(query + i / groups, key / 8 + i % groups);
      uint32_t bits = 0;
      for (int k = 0; k < 8; ++k) bits |= (bits16(words, k) >= mask.place.threshold ? 1u : 0u) << k;
      keep[i] = static_cast<uint8_t>(bits);
    }
  }
};

template <int W, bool Biased>
struct FmaForwardShared {
  using Tile = FmaTile<W>;
  alignas(16) float q[Tile::R * Tile::kStride];
  float k[Tile::N * Tile::kStride], v[Tile::N * Tile::kStride];
  float scores[Tile::R * Tile::kScores];
  uint8_t keep[Tile::R * Tile::N / 8];
};

template <int W>
struct FmaForwardShared<W, true> : FmaForwardShared<W, false> {
  using Tile = FmaTile<W>;
  float gates[Tile::R], window[Tile::R + Tile::N];
};

struct PlainCopy {
  __device__ __forceinline__ void operator()(float* to, const float* from) const { *to = *from; }
};

template <class T, int W, bool Biased>
__global__ void __launch_bounds__(256)
    attention_fma_forward_kernel(AttentionBatch batch, AttentionBias bias, Matrix<T> qkv,
                                 Matrix<T> y, float* lse) {
  using Tile = FmaTile<W>;
  constexpr int R = Tile::R, N = Tile::N, I = Tile::I, J = Tile::J;
  const AttentionBlock block(batch, R);
  if (block.first >= block.T) return;
  auto& shared = shared_memory<FmaForwardShared<W, Biased>>();
  const KeepMask mask{batch.dropout, block};
  const int D = batch.D, there = block.T - block.first;
  const int64_t column = int64_t{block.head} * D;
  const float scale = batch.scale() * kLog2e;  // scores in base 2
  Tile::load(qkv, block.start + block.first, column, R, there, D, shared.q);
  if constexpr (Biased)
    Tile::load_gates(bias.gates(batch, block), block.first, R, there, shared.gates);
  typename Tile::Sums sums = {};
  float most[I], total[I] = {};
  for (float& m : most) m = -INFINITY;
  for (int key = 0; key < block.T; key += N) {
    __syncthreads();  // the last tile is read
    Tile::load(qkv, block.start + key, batch.C() + column, N, block.T - key, D, shared.k);
    Tile::load(qkv, block.start + key, 2 * batch.C() + column, N, block.T - key, D, shared.v);
    if (mask) Tile::load_mask(mask, block.first, R, key, N, shared.keep);
    if constexpr (Biased)
      bias.window(block.head, key - block.first - (R - 1), false, R + N, shared.window,
                  PlainCopy());
    __syncthreads();
    typename Tile::Scores scores;
    Tile::multiply(shared.q, shared.k, scores);
    if constexpr (Biased)
      Tile::template add_bias<false>(shared.gates, shared.window, bias.unit, scores);
#pragma unroll
    for (int i = 0; i < I; ++i) {
      float top = most[i];
      for (int j = 0; j < J; ++j) {
        const bool valid = key + j * 16 + Tile::x() < block.T;
        scores[i][j] = valid ? scores[i][j] * scale : -INFINITY;
        top = fmaxf(top, scores[i][j]);
      }
      top = Tile::template over_row<Max>(top);
      const float shrink = exp2f(most[i] - top);
      most[i] = top;
      total[i] *= shrink;
      for (auto& group : sums[i])
        for (float& sum : group) sum *= shrink;
      for (int j = 0; j < J; ++j) {
        const float p = exp2f(scores[i][j] - top);
        total[i] += p;
        const int at = (i * 16 + Tile::y()) * N + j * 16 + Tile::x();
        const bool keep = !mask || (shared.keep[at / 8] >> at % 8 & 1);
        Tile::score_at(shared.scores, i, j) = keep ? p : 0;
      }
    }
    __syncwarp();
    Tile::accumulate(shared.scores, shared.v, sums);
  }
  float factor[I];
  for (int i = 0; i < I; ++i) {
    total[i] = Tile::template over_row<Add>(total[i]);
    factor[i] = batch.dropout.scale / total[i];
    const int r = i * 16 + Tile::y();
    if (Tile::x() == 0 && r < there)
      lse[block.head * batch.frames + block.start + block.first + r] =
          (most[i] + log2f(total[i])) * kLn2;
  }
  Tile::store(sums, factor, y, block.start + block.first, column, there, D, false);
}

template <int W, bool Biased>
struct FmaBackwardShared {
  using Tile = FmaTile<W>;
  alignas(16) float a0[Tile::R * Tile::kStride];
  float a1[Tile::R * Tile::kStride];
  float b0[Tile::N * Tile::kStride], b1[Tile::N * Tile::kStride];
  float probabilities[Tile::R * Tile::kScores], slopes[Tile::R * Tile::kScores];
  QuerySums sums[Tile::R];  // of the queries, be they stationary or streamed
  uint8_t keep[Tile::R * Tile::N / 8];
};

template <int W>
struct FmaBackwardShared<W, true> : FmaBackwardShared<W, false> {
  using Tile = FmaTile<W>;
  float gates[Tile::R];  // as `sums`
  float window[Tile::R + Tile::N];
  float diagonals[2][Tile::R + Tile::N];  // of this tile and the last one
  float ends[Tile::kThreads / 32];
};

// What a block's queries add to the gradients of their gates and of the table, tile by tile of
// keys. All threads call. The plain one does nothing: no bias, or queries stream.
template <int W, bool kWanted>
struct FmaBiasGradients {
  template <class... Args>
  __device__ explicit FmaBiasGradients(Args&&...) {}
  __device__ void add(int, int, float) {}
  __device__ void step(int) {}
  __device__ void finish() {}
};

template <int W>
struct FmaBiasGradients<W, true> {
  using Tile = FmaTile<W>;
  static constexpr int R = Tile::R, N = Tile::N, kCount = R + N - 1;

  FmaBackwardShared<W, true>& shared;
  const AttentionBatch& batch;
  const AttentionBias& bias;
  const AttentionBlock& block;
  DiagonalSums sums;
  float open = 0;  // this thread's diagonal of the last tile
  int next = 0;    // the last tile's first key
  float dgate[Tile::I] = {};

  __device__ FmaBiasGradients(FmaBackwardShared<W, true>& shared, const AttentionBatch& batch,
                              const AttentionBias& bias, const AttentionBlock& block)
      : shared(shared), batch(batch), bias(bias), block(block), sums(bias, block, block.first, R) {}

  __device__ static int x() { return static_cast<int>(threadIdx.x); }
  __device__ void emit() { sums.emit(next - block.first + x() - (R - 1), open); }

  // A slope of this thread's.
  __device__ __forceinline__ void add(int i, int j, float slope) {
    dgate[i] += slope * shared.window[j * 16 + Tile::x() - (i * 16 + Tile::y()) + R - 1];
  }
  // Slopes of keys [key, key + N) are in shared memory, of this warp's own rows.
  __device__ __forceinline__ void step(int key) {
    if (!sums.row) return;
    __syncthreads();  // all warps' slopes
    next = key;
    const int now = key / N % 2;
    if (x() >= kCount) return;
    open = Tile::diagonal(shared.slopes, shared.gates, x());
    if (key > 0 && x() + N < kCount) open += shared.diagonals[1 - now][x() + N];
    shared.diagonals[now][x()] = open;
    if (x() < N) emit();
  }
  __device__ __forceinline__ void finish() {
    for (int i = 0; i < Tile::I && bias.dgate; ++i) {
      const float total = Tile::template over_row<Add>(dgate[i]);
      const int r = block.first + i * 16 + Tile::y();
      if (Tile::x() != 0 || r >= block.T) continue;
      float& to = bias.dgate[block.head * batch.frames + block.start + r];
      to = bias.dgate_add ? to + total : total;
    }
    if (!sums.row) return;
    if (x() >= N && x() < kCount) emit();
    const float below = block_sum(sums.below, shared.ends);
    const float above = block_sum(sums.above, shared.ends);
    if (x() == 0) sums.row[0] = below, sums.row[2 * sums.reach] = above;
  }
};

// Keys: k and v stay, q and dy stream past, dk and dv come out. Otherwise q and dy stay, k and v
// stream past, dq comes out.
template <class T, int W, bool Keys, bool Biased>
__global__ void __launch_bounds__(256, 2)
    attention_fma_backward_kernel(AttentionBatch batch, AttentionBias bias, Matrix<T> qkv,
                                  Matrix<T> dy, const QuerySums* query_sums, Matrix<T> dqkv,
                                  bool add) {
  using Tile = FmaTile<W>;
  constexpr int R = Tile::R, N = Tile::N, I = Tile::I, J = Tile::J;
  const AttentionBlock block(batch, R);
  if (block.first >= block.T) return;
  auto& shared = shared_memory<FmaBackwardShared<W, Biased>>();
  const KeepMask mask{batch.dropout, block};
  const int D = batch.D, there = block.T - block.first;
  const int64_t column = int64_t{block.head} * D, C = batch.C();
  const float scale = batch.scale();
  const auto load = [&](bool keys, int row, int rows, float* to0, float* to1) {
    const int left = block.T - row;
    const int64_t at = block.start + row;
    Tile::load(qkv, at, (keys ? C : 0) + column, rows, left, D, to0);
    Tile::load(keys ? qkv : dy, at, (keys ? 2 * C : 0) + column, rows, left, D, to1);
    if (keys) return;
    for (int i = static_cast<int>(threadIdx.x); i < rows; i += Tile::kThreads)
      shared.sums[i] =
          i < left ? query_sums[block.head * batch.sums_stride() + at + i] : QuerySums{0, 0};
    if constexpr (Biased) Tile::load_gates(bias.gates(batch, block), row, rows, left, shared.gates);
  };
  load(Keys, block.first, R, shared.a0, shared.a1);
  typename Tile::Sums sums0 = {}, sums1 = {};
  FmaBiasGradients<W, Biased && !Keys> bias_gradients(shared, batch, bias, block);
  for (int next = 0; next < block.T; next += N) {
    __syncthreads();  // the last tile is read
    load(!Keys, next, N, shared.b0, shared.b1);
    if constexpr (Biased)
      bias.window(block.head, next - block.first - (R - 1), Keys, R + N, shared.window,
                  PlainCopy());
    if (mask && Keys) Tile::load_mask(mask, next, N, block.first, R, shared.keep);
    if (mask && !Keys) Tile::load_mask(mask, block.first, R, next, N, shared.keep);
    __syncthreads();
    typename Tile::Scores scores, slopes;
    Tile::multiply(shared.a0, shared.b0, scores);
    Tile::multiply(shared.a1, shared.b1, slopes);
    if constexpr (Biased)
      Tile::template add_bias<Keys>(shared.gates, shared.window, bias.unit, scores);
#pragma unroll
    for (int i = 0; i < I; ++i)
#pragma unroll
      for (int j = 0; j < J; ++j) {
        const int r = i * 16 + Tile::y(), c = j * 16 + Tile::x();
        const QuerySums of = shared.sums[Keys ? c : r];
        const int at = Keys ? c * R + r : r * N + c;
        const bool keep = !mask || (shared.keep[at / 8] >> at % 8 & 1);
        const float p = next + c < block.T ? exp2f(scores[i][j] * (scale * kLog2e) - of.x) : 0.0f;
        const float slope = keep ? slopes[i][j] * batch.dropout.scale : 0.0f;
        Tile::score_at(shared.slopes, i, j) = p * (slope - of.y);
        bias_gradients.add(i, j, p * (slope - of.y));
        if (Keys) Tile::score_at(shared.probabilities, i, j) = keep ? p : 0.0f;
      }
    __syncwarp();
    bias_gradients.step(next);
    Tile::accumulate(shared.slopes, shared.b0, sums0);
    if (Keys) Tile::accumulate(shared.probabilities, shared.b1, sums1);
  }
  bias_gradients.finish();
  if (!dqkv.data) return;
  float factor0[I], factor1[I];
  for (int i = 0; i < I; ++i) factor0[i] = scale, factor1[i] = batch.dropout.scale;
  const int64_t row = block.start + block.first;
  Tile::store(sums0, factor0, dqkv, row, (Keys ? C : 0) + column, there, D, add);
  if (Keys) Tile::store(sums1, factor1, dqkv, row, 2 * C + column, there, D, add);
}

}  // namespace sft::cuda
