// attention.cu: self-attention over a packed batch, forward and backward, without a [T, T] buffer.
//
// Layout   qkv, dqkv [T, 3C], y, dy [T, C] f32 or bf16; lse [H, T] f32; head width D <= 128
// Work     two twins: bf16 with D % 8 == 0 on tensor cores (engine/cuda/attention_mma.cuh),
//          everything else by multiply-adds (engine/cuda/attention_fma.cuh). A block has some rows
//          of a head and streams all rows of the other side past them. Backward: a pass for delta,
//          then one kernel that keeps queries (dq) and one that keeps keys (dk, dv): no atomics
// Cost     forward 4 C sum T_b^2 FLOP; backward 14 C sum T_b^2 for the 10 that count (scores and
//          slopes are made twice). Keys and values are read from L2 once per block of rows
// Numbers  see the twins; fixed order of all sums
#include "engine/ops/attention.h"

#include <algorithm>
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
template <class F>
void with_mma_width(int D, F&& f) {
  if (D <= 64)
    f.template operator()<64>();
  else if (D <= 80)  // HuBERT and wav2vec 2.0 of 1280 channels
    f.template operator()<80>();
  else
    f.template operator()<128>();
}

}  // namespace

void attention_forward(Context& ctx, Tensor qkv, int heads, Dropout dropout, Segments segments,
                       const AttentionOut& out) {
  ScratchScope scratch(ctx.scratch);
  const AttentionBatch batch = attention_batch(ctx, out.y, heads, dropout, segments);
  if (ctx.dry) return;
  with_element(qkv.dtype, [&]<class T>() {
    const auto in = head_matrix<T>(qkv, batch.D), y = head_matrix<T>(out.y, batch.D);
    const auto run = [&](auto kernel, int rows, int threads, size_t shared) {
      launch(kernel, grid(batch, segments, rows), dim3(threads), shared, ctx.gpu->stream(), batch,
             in, y, out.lse.f32());
    };
    if constexpr (std::is_same_v<T, bf16>)
      if (in.whole && y.whole)
        return with_mma_width(batch.D, [&]<int W>() {
          run(attention_mma_forward_kernel<W>, MmaTile<W>::R, MmaTile<W>::kThreads,
              sizeof(MmaForwardShared<W>));
        });
    with_fma_width(batch.D, [&]<int W>() {
      run(attention_fma_forward_kernel<T, W>, FmaTile<W>::R, FmaTile<W>::kThreads,
          sizeof(FmaForwardShared<W>));
    });
  });
}

void attention_backward(Context& ctx, Tensor dy, Tensor qkv, const AttentionOut& out, int heads,
                        Dropout dropout, Segments segments, Grad dqkv) {
  ScratchScope scratch(ctx.scratch);
  const AttentionBatch batch = attention_batch(ctx, out.y, heads, dropout, segments);
  auto* sums = static_cast<QuerySums*>(
      ctx.scratch.take(heads * batch.sums_stride() * static_cast<int64_t>(sizeof(QuerySums))));
  if (ctx.dry) return;
  with_element(qkv.dtype, [&]<class T>() {
    const auto in = head_matrix<T>(qkv, batch.D), y = head_matrix<T>(out.y, batch.D),
               gradient = head_matrix<T>(dy, batch.D), to = head_matrix<T>(dqkv.to, batch.D);
    const auto sums_kernel =
        batch.D <= 64 ? attention_query_sums_kernel<T, 8> : attention_query_sums_kernel<T, 16>;
    launch(sums_kernel, dim3(ceil_div(batch.frames, 8)), dim3(256), 0, ctx.gpu->stream(), batch,
           gradient, y, out.lse.f32(), sums);
    const auto run = [&](auto kernel, int rows, int threads, size_t shared) {
      launch(kernel, grid(batch, segments, rows), dim3(threads), shared, ctx.gpu->stream(), batch,
             in, gradient, sums, to, dqkv.add);
    };
    if constexpr (std::is_same_v<T, bf16>)
      if (in.whole && gradient.whole && to.whole)
        return with_mma_width(batch.D, [&]<int W>() {
          using Tile = MmaTile<W>;
          const size_t shared = sizeof(MmaBackwardShared<W>);
          run(attention_mma_backward_kernel<W, false>, Tile::R, Tile::kThreads, shared);
          run(attention_mma_backward_kernel<W, true>, Tile::R, Tile::kThreads, shared);
        });
    with_fma_width(batch.D, [&]<int W>() {
      using Tile = FmaTile<W>;
      const size_t shared = sizeof(FmaBackwardShared<W>);
      run(attention_fma_backward_kernel<T, W, false>, Tile::R, Tile::kThreads, shared);
      run(attention_fma_backward_kernel<T, W, true>, Tile::R, Tile::kThreads, shared);
    });
  });
}

}  // namespace sft::cuda
