// Products of matrices by tiles, for what no library computes: rows that overlap, as those of a
// convolution over channels-last rows do, and any way of storing the sums.
//
//   by columns  sums[m, n] = sum_k A[m, k] B[n, k]
//   by rows     sums[m, n] = sum_k A[k, m] B[k, n]
//
// Layout   A, B f32 or bf16, any size; 16-byte copies where data, stride and sizes allow them
// Work     a block of 8 warps per kM x kN tile; kStages stages of 64 bytes of depth in shared
//          memory, copied ahead by cp.async; rows 16 bytes apart modulo 128, so that ldmatrix meets
//          no bank twice. bf16: mma.m16n8k16; f32: the same fragments by plain FMAs (the twin).
//          With a window (rows of all of A's overlap lie in shared memory once, `stride` numbers
//          each, a tap after the other) only B is copied in stages. The sums go through shared
//          memory, so that they are stored in vectors of 8 along rows
// Cost     a 128 x 128 tile takes 64 FLOP (bf16) for each byte copied from the L2 cache; one of
//          128 x 64 takes 43, with a window 128
// Numbers  f32 sums in ascending k; the same bits every run. The caller adds up splits of the depth
#pragma once

#include <algorithm>

#include "engine/context.h"
#include "engine/cuda/ptx.cuh"
#include "engine/cuda/row.cuh"
#include "engine/cuda/runtime.h"

namespace sft::cuda {

// A matrix whose rows may overlap (stride < columns). What lies outside counts as zero.
template <class T>
struct Operand {
  const T* data;
  int64_t stride;  // elements from row to row
  int64_t rows, columns;
  int64_t end;   // elements that are there, from `data` on
  int64_t step;  // elements from one product of a batch to the next
  bool whole;    // 16-byte copies
};

template <class T>
Operand<T> operand(const T* data, int64_t stride, int64_t rows, int64_t columns, int64_t end,
                   int64_t step = 0) {
  constexpr int64_t chunk = 16 / sizeof(T);
  const bool whole = reinterpret_cast<uintptr_t>(data) % 16 == 0 && stride % chunk == 0 &&
                     columns % chunk == 0 && end % chunk == 0 && step % chunk == 0;
  return {data, stride, rows, columns, end, step, whole};
}

constexpr int kTileThreads = 256, kStages = 4;

// By columns, as overlapping rows of whole taps: A's columns are taps of `stride` numbers each, and
// tap j of row m is tap 0 of row m + j.
constexpr int kWindowTaps = 128, kWindowStride = 64;  // at most; strides are multiples of 16

template <class T>
bool fits_window(const Operand<T>& a) {
  return a.whole && a.stride % 16 == 0 && a.stride <= kWindowStride && a.columns % a.stride == 0 &&
         a.columns / a.stride <= kWindowTaps;
}

template <class T, int kM, int kN, bool kWindow>
struct TileShared {
  static constexpr int kDepth = 64 / sizeof(T);  // of a stage
  static constexpr int kPad = 16 / sizeof(T);
  static constexpr int kPitch = kDepth + kPad;
  struct alignas(16) Stage {  // by rows: [kDepth][kM + kPad], [kDepth][kN + kPad]
    T b[kN * kPitch];
    T a[kWindow ? kPad : kM * kPitch];
  };
  struct Copies {
    Stage stages[kStages];
    T window[kWindow ? (kM + kWindowTaps) * (kWindowStride + kPad) : kPad];
  };
  union {
    Copies copies;
    float sums[kM][kN + 4];
  };
  int place[kM];
};

// to [kRows][kColumns + padding] = rows from `row` on, columns from `column` on.
template <int kRows, int kColumns, class T>
__device__ __forceinline__ void copy_tile(const Operand<T>& from, int64_t row, int64_t column,
                                          T* to) {
  constexpr int kChunk = 16 / sizeof(T), kPerRow = kColumns / kChunk;
#pragma unroll
  for (int i = threadIdx.x; i < kRows * kPerRow; i += kTileThreads) {
    const int64_t r = row + i / kPerRow, c = column + i % kPerRow * kChunk;
    const int64_t offset = r * from.stride + c;
    const int64_t there = r < from.rows ? min(from.columns - c, from.end - offset) : 0;
    T* chunk = to + i / kPerRow * (kColumns + kChunk) + i % kPerRow * kChunk;
    if (from.whole) {
      cp_async_16(chunk, there > 0 ? from.data + offset : from.data, there > 0);
    } else {
      for (int e = 0; e < kChunk; ++e) chunk[e] = e < there ? from.data[offset + e] : T{};
    }
  }
}

// The rows that the windows from row m0 on overlap, and one more (a stage may reach past the last
// tap), stride + 16 bytes apart.
template <int kM, class T>
__device__ __forceinline__ void copy_window(const Operand<T>& a, int64_t m0, T* to) {
  constexpr int kChunk = 16 / sizeof(T);
  const int stride = static_cast<int>(a.stride), per_row = stride / kChunk;
  const int chunks = (kM + static_cast<int>(a.columns) / stride) * per_row;
  for (int i = threadIdx.x; i < chunks; i += kTileThreads) {
    const int64_t offset = m0 * stride + int64_t{i} * kChunk;
    const bool there = offset < a.end;
    cp_async_16(to + i / per_row * (stride + kChunk) + i % per_row * kChunk,
                there ? a.data + offset : a.data, there);
  }
}

// acc += 64 bytes of depth of the warp's share of a stage: kMT x kNT tiles of 16 x 8. a, b: its
// first row (by rows: column); at: where each 16 numbers of depth begin in the rows of A.
template <bool kByRows, int kMT, int kNT>
__device__ __forceinline__ void multiply(const bf16* a, int a_pitch, const int (&at)[2],
                                         const bf16* b, int b_pitch, float (&acc)[kMT][kNT][4]) {
  const int l = lane(), row = l % 8, low = l / 8 % 2 * 8, high = l / 16 * 8;
#pragma unroll
  for (int k = 0; k < 32; k += 16) {
    uint32_t as[kMT][4], bs[kNT][2];
#pragma unroll
    for (int i = 0; i < kMT; ++i)
      if constexpr (kByRows)
        ldmatrix_x4_trans(as[i], a + (k + high + row) * a_pitch + 16 * i + low);
      else
        ldmatrix_x4(as[i], a + (16 * i + low + row) * a_pitch + at[k / 16] + high);
#pragma unroll
    for (int j = 0; j < kNT; j += 2) {
      uint32_t both[4];
      if constexpr (kByRows)
        ldmatrix_x4_trans(both, b + (k + low + row) * b_pitch + 8 * j + high);
      else
        ldmatrix_x4(both, b + (8 * j + high + row) * b_pitch + k + low);
      bs[j][0] = both[0], bs[j][1] = both[1], bs[j + 1][0] = both[2], bs[j + 1][1] = both[3];
    }
#pragma unroll
    for (int i = 0; i < kMT; ++i)
#pragma unroll
      for (int j = 0; j < kNT; ++j) mma_m16n8k16_bf16(acc[i][j], as[i], bs[j]);
  }
}

template <bool kByRows, int kMT, int kNT>
__device__ __forceinline__ void multiply(const float* a, int a_pitch, const int (&at)[1],
                                         const float* b, int b_pitch, float (&acc)[kMT][kNT][4]) {
  const int g = lane() / 4, t = lane() % 4 * 2;
#pragma unroll 4
  for (int k = 0; k < 16; ++k) {
    float as[kMT][2], bs[kNT][2];
#pragma unroll
    for (int i = 0; i < 2 * kMT; ++i)
      as[i / 2][i % 2] =
          kByRows ? a[k * a_pitch + 8 * i + g] : a[(8 * i + g) * a_pitch + at[0] + k];
#pragma unroll
    for (int j = 0; j < 2 * kNT; ++j)
      bs[j / 2][j % 2] = kByRows ? b[k * b_pitch + j / 2 * 8 + t + j % 2]
                                 : b[(j / 2 * 8 + t + j % 2) * b_pitch + k];
#pragma unroll
    for (int i = 0; i < kMT; ++i)
#pragma unroll
      for (int j = 0; j < kNT; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) acc[i][j][e] += as[i][e / 2] * bs[j][e % 2];
  }
}

// Finish, a struct of run-time arguments:
//   int place(int64_t row)                                   what store gets of a row, once per row
//   void store(int z, int place, int column, const Float8&)  sums of 8 columns; z = batch * splits
//   +
//                                                            split. Columns past N are zero
// Split s has the depths [s * split, (s + 1) * split); split is a multiple of 32.
template <bool kByRows, int kM, int kN, bool kWindow, class T, class Finish>
__global__ void __launch_bounds__(kTileThreads, 2)
    product_kernel(Operand<T> a, Operand<T> b, int splits, int64_t split, Finish finish) {
  using Shared = TileShared<T, kM, kN, kWindow>;
  constexpr int kDepth = Shared::kDepth;
  constexpr int kPitchB = (kByRows ? kN : kDepth) + Shared::kPad;
  constexpr int kWarpsN = kN / 32, kRows = kM / (8 / kWarpsN), kMT = kRows / 16, kNT = 4;
  Shared& shared = shared_memory<Shared>();
  const int a_pitch = Shared::kPad + (kWindow ? static_cast<int>(a.stride) : kByRows ? kM : kDepth);
  const int64_t M = kByRows ? a.columns : a.rows, N = kByRows ? b.columns : b.rows;
  const int64_t m0 = blockIdx.y * int64_t{kM}, n0 = blockIdx.x * int64_t{kN};
  const int batch = blockIdx.z / splits;
  const int64_t first = blockIdx.z % splits * split;
  const int64_t last = min(kByRows ? a.rows : a.columns, first + split);
  const int steps = last > first ? static_cast<int>(ceil_div(last - first, kDepth)) : 0;
  a.data += batch * a.step, b.data += batch * b.step;
  (kByRows ? a.rows : a.columns) = last, (kByRows ? b.rows : b.columns) = last;

  const auto copy = [&](int step) {
    if (step < steps) {
      typename Shared::Stage& stage = shared.copies.stages[step % kStages];
      const int64_t k = first + step * int64_t{kDepth};
      if constexpr (kByRows) {
        copy_tile<kDepth, kM>(a, k, m0, stage.a);
        copy_tile<kDepth, kN>(b, k, n0, stage.b);
      } else {
        if constexpr (!kWindow) copy_tile<kM, kDepth>(a, m0, k, stage.a);
        copy_tile<kN, kDepth>(b, n0, k, stage.b);
      }
    }
    cp_async_commit();
  };
  if constexpr (kWindow) copy_window<kM>(a, m0, shared.copies.window);
  for (int step = 0; step < kStages - 1; ++step) copy(step);

  const int row = warp() / kWarpsN * kRows, column = warp() % kWarpsN * 32;  // of the warp's share
  float acc[kMT][kNT][4] = {};
  int tap = 0, number = 0;  // of a window: where the next 16 of depth begin
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<kStages - 2>();
    __syncthreads();  // this stage is there for all; the one copied to next is no longer read
    copy(step + kStages - 1);
    const typename Shared::Stage& stage = shared.copies.stages[step % kStages];
    int at[kDepth / 16];
#pragma unroll
    for (int i = 0; i < kDepth / 16; ++i) {
      at[i] = kWindow ? tap * a_pitch + number : 16 * i;
      number += 16;
      if (number == a.stride) number = 0, ++tap;
    }
    const T* as = kWindow ? shared.copies.window : stage.a;
    multiply<kByRows>(as + (kByRows ? row : row * a_pitch), a_pitch, at,
                      stage.b + (kByRows ? column : column * kPitchB), kPitchB, acc);
  }
  cp_async_wait<0>();
  __syncthreads();  // before the sums overwrite the stages

#pragma unroll
  for (int i = 0; i < kMT; ++i)
#pragma unroll
    for (int j = 0; j < kNT; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        shared
            .sums[row + 16 * i + e / 2 * 8 + lane() / 4][column + 8 * j + lane() % 4 * 2 + e % 2] =
            acc[i][j][e];
  if (threadIdx.x < kM && m0 + threadIdx.x < M)
    shared.place[threadIdx.x] = finish.place(m0 + threadIdx.x);
  __syncthreads();
  for (int i = threadIdx.x; i < kM * kN / 8; i += kTileThreads) {
    const int r = i / (kN / 8), c = i % (kN / 8) * 8;
    if (m0 + r < M && n0 + c < N)
      finish.store(blockIdx.z, shared.place[r], n0 + c, load8(&shared.sums[r][c]));
  }
}

struct Splits {
  int count = 1;
  int64_t depth = INT64_MAX / 2;
};

// Of a depth, into parts of at least `least` (a multiple of 32), at most `most` of them.
inline Splits splits_of(int64_t depth, int64_t least, int most) {
  const int64_t count = std::clamp<int64_t>(depth / least, 1, most);
  const int64_t each = ceil_div(ceil_div(depth, count), 32) * 32;
  return {static_cast<int>(count), std::max<int64_t>(each, 32)};
}

template <bool kByRows, int kM, int kN, bool kWindow = false, class T, class Finish>
void product(Context& ctx, const Operand<T>& a, const Operand<T>& b, int64_t batch, Splits splits,
             const Finish& finish) {
  const int64_t M = kByRows ? a.columns : a.rows, N = kByRows ? b.columns : b.rows;
  launch(product_kernel<kByRows, kM, kN, kWindow, T, Finish>,
         dim3(ceil_div(N, kN), ceil_div(M, kM), batch * splits.count), dim3(kTileThreads),
         sizeof(TileShared<T, kM, kN, kWindow>), ctx.gpu->stream(), a, b, splits.count,
         splits.depth, finish);
}

// Finish: the sums of each z as they are, [z][rows][columns].
struct StoreSums {
  float* to;
  int64_t rows;
  int columns;

  __device__ int place(int64_t row) const { return static_cast<int>(row); }
  __device__ void store(int z, int place, int column, const Float8& sums) const {
    store_row(to + (z * rows + place) * columns, column, columns, columns % 8 == 0, sums);
  }
};

}  // namespace sft::cuda
