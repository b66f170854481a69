// attention.cu: self-attention over a packed batch, forward and backward, without a [T, T] buffer.
//
// Layout   qkv, dqkv [T, 3C], y, dy [T, C] f32 or bf16; lse [H, T] f32; head width D <= 128
//          bias (engine/cuda/attention_bias.cuh): gate [H, T], table [H, 2R + 1] f32
// Work     two twins: bf16 with D % 8 == 0 (and D <= 64 with a bias) on tensor cores
//          (engine/cuda/attention_mma.cuh), everything else by multiply-adds
//          (engine/cuda/attention_fma.cuh). A block has some rows
//          of a head and streams all rows of the other side past them. Backward: a pass for delta,
//          then one kernel that keeps queries (dq) and one that keeps keys (dk, dv): no atomics
// Cost     forward 4 C sum T_b^2 FLOP; backward 14 C sum T_b^2 for the 10 that count (scores and
//          slopes are made twice). Keys and values are read from L2 once per block of rows
// Numbers  see the twins; fixed order of all sums
#include "engine/ops/attention.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "engine/cuda/attention_fma.cuh"
#include "engine/cuda/attention_mma.cuh"
#include "engine/cuda/runtime.h"

namespace sft::cuda {
namespace {

// Sums of the backward, [H, T] (rows of an even number): a warp per frame, `Lanes` lanes per head.
template <class T, int Lanes>
__global__ void attention_query_sums_kernel(AttentionBatch batch, Matrix<T> dy, Matrix<T> y,
                                            const float* lse, QuerySums* sums) {
  const int64_t t = int64_t{blockIdx.x} * warps() + warp();
  if (t >= batch.frames) return;
  for (int first = 0; first < batch.H; first += 32 / Lanes) {
    const int head = first + lane() / Lanes, c = lane() % Lanes * 8;
    float delta = 0;
    if (head < batch.H && c < batch.D) {
      const Float8 a = load_row(dy.row(t) + head * batch.D, c, batch.D, dy.whole);
      const Float8 b = load_row(y.row(t) + head * batch.D, c, batch.D, y.whole);
#pragma unroll
      for (int k = 0; k < 8; ++k) delta += a.v[k] * b.v[k];
    }
#pragma unroll
    for (int bit = Lanes / 2; bit > 0; bit /= 2) delta += __shfl_xor_sync(~0u, delta, bit);
    if (head < batch.H && c == 0)
      sums[head * batch.sums_stride() + t] = {lse[head * batch.frames + t] * kLog2e, delta};
  }
}

// dtable (+)= the groups' rows. A block has 32 distances of a head; its warps share the groups.
struct TableSumsShared {
  float sums[8][32];
};

__global__ void attention_table_sums_kernel(AttentionBatch batch, AttentionBias bias,
                                            int utterances, int rows, float* dtable, bool add) {
  const int head = static_cast<int>(blockIdx.y), width = 2 * bias.reach + 1;
  const int column = static_cast<int>(blockIdx.x) * 32 + lane(), distance = column - bias.reach;
  const bool end = column == 0 || column == width - 1;
  const float* from = bias.groups + head * bias.group_count * width + column;
  float sum = 0;
  for (int b = 0; b < utterances && column < width; ++b) {
    const int start = batch.starts[b], T = batch.starts[b + 1] - start;
    const auto first = static_cast<int>(AttentionBias::group(start, b, 0, rows));
    for (int k = (warp() - first % 8 + 8) % 8; k * rows < T; k += 8) {
      const bool written = end || (distance > -(k + 1) * rows && distance < T - k * rows);
      if (written) sum += from[int64_t{first + k} * width];
    }
  }
  TableSumsShared& shared = shared_memory<TableSumsShared>();
  shared.sums[warp()][lane()] = sum;
  __syncthreads();
  if (warp() != 0 || column >= width) return;
  for (int w = 1; w < 8; ++w) sum += shared.sums[w][lane()];
  float& to = dtable[int64_t{head} * width + column];
  to = add ? to + sum : sum;
}

// Utterances in the order that blocks take them. Kept from call to call: a step allocates nothing.
std::span<const int32_t> longest_first(Segments segments) {
  static thread_local std::vector<int32_t> order;
  order.resize(segments.utterances.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return std::pair(-segments.length(a), a) < std::pair(-segments.length(b), b);
  });
  return order;
}

AttentionBatch attention_batch(Context& ctx, Tensor y, int heads, Dropout dropout,
                               Segments segments) {
  return {on_device(ctx, segments.starts),
          on_device(ctx, segments.utterances),
          on_device(ctx, longest_first(segments)),
          heads,
          static_cast<int>(y.width() / heads),
          y.rows(),
          dropout_place(ctx, dropout)};
}

constexpr int kFewestGroupRows = 32;  // of the groups that sum the table's gradient

AttentionBias attention_bias(Context& ctx, const RelativeBias& bias, const AttentionGrads& grads,
                             int64_t width, Segments segments) {
  AttentionBias b{};
  if (!bias) return b;
  b.gate = bias.gate.f32(), b.table = bias.table.f32();
  b.reach = static_cast<int>(bias.table.width() / 2);
  b.unit = std::sqrt(static_cast<float>(width / bias.table.rows()));
  b.dgate = static_cast<float*>(grads.gate.to.data), b.dgate_add = grads.gate.add;
  b.group_count = bias.gate.width() / kFewestGroupRows + segments.batch();
  if (grads.table)
    b.groups = ctx.temporary({bias.table.rows() * b.group_count * bias.table.width()}).f32();
  return b;
}

void sum_table(Context& ctx, const AttentionBatch& batch, const AttentionBias& bias,
               Segments segments, int rows, const Grad& to) {
  if (!to) return;
  launch(attention_table_sums_kernel, dim3(ceil_div(2 * bias.reach + 1, 32), batch.H), dim3(256),
         sizeof(TableSumsShared), ctx.gpu->stream(), batch, bias, segments.batch(), rows,
         to.to.f32(), to.add);
}

dim3 grid(const AttentionBatch& batch, Segments segments, int rows) {
  return {static_cast<unsigned>(ceil_div(segments.longest(), rows)), static_cast<unsigned>(batch.H),
          static_cast<unsigned>(segments.batch())};
}

// Columns of a head start at multiples of 16 bytes in every matrix.
template <class T>
Matrix<T> head_matrix(const Tensor& t, int D) {
  Matrix<T> m = matrix<T>(t);
  m.whole = m.whole && D % 8 == 0;
  return m;
}

// f.operator()<W>() with the width that a head of D columns is padded to.
template <class F>
void with_fma_width(int D, F&& f) {
  D <= 64 ? f.template operator()<64>() : f.template operator()<128>();
}
template <bool Biased, class F>
void with_mma_width(int D, F&& f) {
  if constexpr (Biased)
    f.template operator()<64>();
  else if (D <= 64)
    f.template operator()<64>();
  else if (D <= 80)  // HuBERT and wav2vec 2.0 of 1280 channels
    f.template operator()<80>();
  else
    f.template operator()<128>();
}
// f.operator()<Biased>().
template <class F>
void with_bias(const RelativeBias& bias, F&& f) {
  bias ? f.template operator()<true>() : f.template operator()<false>();
}
// All released WavLMs have heads of 64.
bool on_tensor_cores(int D, bool biased) { return !biased || D <= 64; }

}  // namespace

void attention_forward(Context& ctx, Tensor qkv, const RelativeBias& relative, int heads,
                       Dropout dropout, Segments segments, const AttentionOut& out) {
  ScratchScope scratch(ctx.scratch);
  const AttentionBatch batch = attention_batch(ctx, out.y, heads, dropout, segments);
  const AttentionBias bias = attention_bias(ctx, relative, {}, out.y.width(), segments);
  if (ctx.dry) return;
  with_element(qkv.dtype, [&]<class T>() {
    const auto in = head_matrix<T>(qkv, batch.D), y = head_matrix<T>(out.y, batch.D);
    const auto run = [&](auto kernel, int rows, int threads, size_t shared) {
      launch(kernel, grid(batch, segments, rows), dim3(threads), shared, ctx.gpu->stream(), batch,
             bias, in, y, out.lse.f32());
    };
    with_bias(relative, [&]<bool Biased>() {
      if constexpr (std::is_same_v<T, bf16>)
        if (in.whole && y.whole && on_tensor_cores(batch.D, Biased))
          return with_mma_width<Biased>(batch.D, [&]<int W>() {
            run(attention_mma_forward_kernel<W, Biased>, MmaTile<W>::R, MmaTile<W>::kThreads,
                sizeof(MmaForwardShared<W, Biased>));
          });
      with_fma_width(batch.D, [&]<int W>() {
        run(attention_fma_forward_kernel<T, W, Biased>, FmaTile<W>::R, FmaTile<W>::kThreads,
            sizeof(FmaForwardShared<W, Biased>));
      });
    });
  });
}

void attention_backward(Context& ctx, Tensor dy, Tensor qkv, const RelativeBias& relative,
                        const AttentionOut& out, int heads, Dropout dropout, Segments segments,
                        const AttentionGrads& grads) {
  ScratchScope scratch(ctx.scratch);
  const AttentionBatch batch = attention_batch(ctx, out.y, heads, dropout, segments);
  const AttentionBias bias = attention_bias(ctx, relative, grads, out.y.width(), segments);
  auto* sums = static_cast<QuerySums*>(
      ctx.scratch.take(heads * batch.sums_stride() * static_cast<int64_t>(sizeof(QuerySums))));
  if (ctx.dry) return;
  const Grad& dqkv = grads.qkv;
  with_element(qkv.dtype, [&]<class T>() {
    const auto in = head_matrix<T>(qkv, batch.D), y = head_matrix<T>(out.y, batch.D),
               gradient = head_matrix<T>(dy, batch.D), to = head_matrix<T>(dqkv.to, batch.D);
    const auto sums_kernel =
        batch.D <= 64 ? attention_query_sums_kernel<T, 8> : attention_query_sums_kernel<T, 16>;
    launch(sums_kernel, dim3(ceil_div(batch.frames, 8)), dim3(256), 0, ctx.gpu->stream(), batch,
           gradient, y, out.lse.f32(), sums);
    const auto run = [&](auto kernel, int rows, int threads, size_t shared) {
      launch(kernel, grid(batch, segments, rows), dim3(threads), shared, ctx.gpu->stream(), batch,
             bias, in, gradient, sums, to, dqkv.add);
    };
    with_bias(relative, [&]<bool Biased>() {
      if constexpr (std::is_same_v<T, bf16>)
        if (in.whole && gradient.whole && (to.whole || !dqkv) && on_tensor_cores(batch.D, Biased))
          return with_mma_width<Biased>(batch.D, [&]<int W>() {
            using Tile = MmaTile<W>;
            const size_t shared = sizeof(MmaBackwardShared<W, Biased>);
            run(attention_mma_backward_kernel<W, false, Biased>, Tile::R, Tile::kThreads, shared);
            if (dqkv)
              run(attention_mma_backward_kernel<W, true, Biased>, Tile::R, Tile::kThreads, shared);
            sum_table(ctx, batch, bias, segments, Tile::kWarpRows, grads.table);
          });
      with_fma_width(batch.D, [&]<int W>() {
        using Tile = FmaTile<W>;
        const size_t shared = sizeof(FmaBackwardShared<W, Biased>);
        run(attention_fma_backward_kernel<T, W, false, Biased>, Tile::R, Tile::kThreads, shared);
        if (dqkv)
          run(attention_fma_backward_kernel<T, W, true, Biased>, Tile::R, Tile::kThreads, shared);
        sum_table(ctx, batch, bias, segments, Tile::R, grads.table);
      });
    });
  });
}

}  // namespace sft::cuda
