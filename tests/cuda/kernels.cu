#include "tests/cuda/kernels.h"

#include "engine/cuda/device.cuh"
#include "engine/cuda/gelu.cuh"
#include "engine/cuda/ptx.cuh"
#include "engine/cuda/reduce.cuh"
#include "engine/rng.h"

namespace sft::test {
namespace {

using namespace sft::cuda;

struct RowShared {
  float floats[32];
  double doubles[32];
};

__global__ void row_sums(const float* x, int count, double* out) {
  RowShared& shared = shared_memory<RowShared>();
  x += int64_t{blockIdx.x} * count;
  float sum = 0, largest = -INFINITY;
  double exact = 0;
  for (int i = static_cast<int>(threadIdx.x); i < count; i += static_cast<int>(blockDim.x)) {
    sum += x[i];
    exact += x[i];
    largest = fmaxf(largest, x[i]);
  }
  sum = block_sum(sum, shared.floats);
  largest = block_max(largest, shared.floats);
  exact = block_sum(exact, shared.doubles);
  if (threadIdx.x != 0) return;
  out[blockIdx.x * 3] = sum;
  out[blockIdx.x * 3 + 1] = largest;
  out[blockIdx.x * 3 + 2] = exact;
}

__global__ void shuffles(uint32_t* out) {
  const uint32_t id = static_cast<uint32_t>(lane()), value = id * 10;
  out[id] = __shfl_sync(~0u, value, 3);
  out[32 + id] = __shfl_up_sync(~0u, value, 1);
  out[64 + id] = __shfl_down_sync(~0u, value, 2);
  out[96 + id] = __shfl_xor_sync(~0u, value, 5, 16);
  out[128 + id] = __ballot_sync(~0u, id % 2);
  out[160 + id] = static_cast<uint32_t>(__any_sync(~0u, id > 40));
  out[192 + id] = static_cast<uint32_t>(__all_sync(~0u, id < 40));
  uint32_t sum = value;
  if (id < 8) {
    for (int bit = 4; bit > 0; bit /= 2) sum += __shfl_xor_sync(0xFFu, sum, bit);
    __syncwarp(0xFFu);
  }
  out[224 + id] = sum;
  out[256 + id] = __reduce_add_sync(~0u, id);
  out[288 + id] = static_cast<uint32_t>(__reduce_min_sync(~0u, 5 - static_cast<int>(id)));
  out[320 + id] = __reduce_max_sync(~0u, id ^ 21u);
  out[352 + id] = __reduce_and_sync(~0u, id | 6u);
  out[384 + id] = __reduce_or_sync(~0u, id & 10u);
  out[416 + id] = __match_any_sync(~0u, id % 4);
}

__global__ void block_votes(const int* x, int* out) {
  const unsigned t = threadIdx.x;
  const int holds = x[t] != 0;
  out[t * 3] = __syncthreads_count(holds);
  out[t * 3 + 1] = __syncthreads_or(holds);
  out[t * 3 + 2] = __syncthreads_and(holds);
}

__global__ void histogram(const int* values, int count, int bins, int* counts, int* largest,
                          float* sum) {
  int* shared = &shared_memory<int>();
  for (int b = static_cast<int>(threadIdx.x); b < bins; b += static_cast<int>(blockDim.x))
    shared[b] = 0;
  __syncthreads();
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < count) {
    atomicAdd(&shared[values[i]], 1);
    atomicMax(largest, values[i]);
    atomicAdd(sum, static_cast<float>(values[i]));
  }
  __syncthreads();
  for (int b = static_cast<int>(threadIdx.x); b < bins; b += static_cast<int>(blockDim.x))
    atomicAdd(&counts[b], shared[b]);
}

template <class T>
__global__ void scale(const T* x, float by, int count, T* y) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x) * 8;
  if (i >= count) return;
  Float8 values = load8(x + i);
  for (float& v : values.v) v *= by;
  store8(y + i, values);
}

constexpr int kTile = 64, kDepth = 32, kPad = 8;

// Tiles as they lie in memory: [rows, kDepth], or [kDepth, rows]; both fit.
struct MatmulShared {
  alignas(16) bf16 a[2][kTile * (kDepth + kPad)];
  alignas(16) bf16 b[2][kTile * (kDepth + kPad)];
};
static_assert(kDepth * (kTile + kPad) <= kTile * (kDepth + kPad));

// A tile of height x width, from row r0 and column c0 of a matrix [rows, columns].
__device__ void fetch(bf16* to, const bf16* from, int rows, int columns, int r0, int c0, int height,
                      int width) {
  const int groups = width / 8;
  for (int g = static_cast<int>(threadIdx.x); g < height * groups; g += 128) {
    const int r = g / groups, c = g % groups * 8;
    const bool valid = r0 + r < rows && c0 + c < columns;
    cp_async_16(to + r * (width + kPad) + c,
                from + (valid ? int64_t{r0 + r} * columns + c0 + c : 0), valid);
  }
}

// 4 warps of 16 rows each.
template <bool kAByK, bool kBByK>
__global__ void matmul(const bf16* A, const bf16* B, int M, int N, int K, float* C) {
  MatmulShared& s = shared_memory<MatmulShared>();
  const int m0 = static_cast<int>(blockIdx.y) * kTile, n0 = static_cast<int>(blockIdx.x) * kTile;
  const auto fetch_stage = [&](int k0) {
    const int stage = k0 / kDepth % 2;
    if (k0 < K) {
      if constexpr (kAByK) {
        fetch(s.a[stage], A, K, M, k0, m0, kDepth, kTile);
      } else {
        fetch(s.a[stage], A, M, K, m0, k0, kTile, kDepth);
      }
      if constexpr (kBByK) {
        fetch(s.b[stage], B, K, N, k0, n0, kDepth, kTile);
      } else {
        fetch(s.b[stage], B, N, K, n0, k0, kTile, kDepth);
      }
    }
    cp_async_commit();
  };
  float acc[kTile / 8][4] = {};
  fetch_stage(0);
  for (int k0 = 0; k0 < K; k0 += kDepth) {
    fetch_stage(k0 + kDepth);
    cp_async_wait<1>();
    __syncthreads();
    const bf16* a = s.a[k0 / kDepth % 2];
    const bf16* b = s.b[k0 / kDepth % 2];
    for (int k = 0; k < kDepth; k += 16) {
      uint32_t fa[4];
      if constexpr (kAByK) {
        const int row = k + lane() % 8 + lane() / 16 * 8, column = warp() * 16 + lane() / 8 % 2 * 8;
        ldmatrix_x4_trans(fa, a + row * (kTile + kPad) + column);
      } else {
        const int row = warp() * 16 + lane() % 16, column = k + lane() / 16 * 8;
        ldmatrix_x4(fa, a + row * (kDepth + kPad) + column);
      }
      for (int n = 0; n < kTile; n += 8) {
        uint32_t fb[2];
        if constexpr (kBByK) {
          ldmatrix_x2_trans(fb, b + (k + lane() % 16) * (kTile + kPad) + n);
        } else {
          ldmatrix_x2(fb, b + (n + lane() % 8) * (kDepth + kPad) + k + lane() / 8 % 2 * 8);
        }
        mma_m16n8k16_bf16(acc[n / 8], fa, fb);
      }
    }
    __syncthreads();
  }
  cp_async_wait<0>();
  for (int i = 0; i < kTile / 2; ++i) {
    const int m = m0 + warp() * 16 + lane() / 4 + i % 4 / 2 * 8;
    const int n = n0 + i / 4 * 8 + lane() % 4 * 2 + i % 2;
    if (m < M && n < N) C[int64_t{m} * N + n] = acc[i / 4][i % 4];
  }
}

struct RelayShared {
  float slot[32];
};

__global__ void relay(const float* x, int steps, float* y) {
  RelayShared& s = shared_memory<RelayShared>();
  constexpr int kFull = 1, kEmpty = 2;
  for (int i = 0; i < steps; ++i) {
    if (warp() == 0) {
      if (i > 0) named_barrier(kEmpty, 64);
      s.slot[lane()] = x[i * 32 + lane()];
      named_barrier_arrive(kFull, 64);
    } else {
      named_barrier(kFull, 64);
      y[i * 32 + lane()] = 2 * s.slot[lane()];
      if (i + 1 < steps) named_barrier_arrive(kEmpty, 64);
    }
  }
}

__global__ void gelus(const float* x, int count, float* out) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= count) return;
  const Gelu g = gelu_and_slope(x[i]);
  out[2 * i] = g.value, out[2 * i + 1] = g.slope;
}

__global__ void philox_bits(uint64_t seed, uint32_t utterance, uint32_t update, uint32_t site,
                            int count, uint32_t* out) {
  const uint32_t t = blockIdx.x * blockDim.x + threadIdx.x;
  if (t >= static_cast<uint32_t>(count)) return;
  out[t] = bits16(philox(seed, t / 8, utterance, update, site), static_cast<int>(t % 8));
}

unsigned blocks(int64_t count, int64_t each) {
  return static_cast<unsigned>(ceil_div(count, each));
}

template <class T>
void scale_by(void* stream, const T* x, float by, int count, T* y) {
  launch(scale<T>, blocks(count, 8 * 64), 64, 0, stream, x, by, count, y);
}

}  // namespace

void launch_row_sums(void* stream, const float* x, int rows, int count, int threads, double* out) {
  launch(row_sums, static_cast<unsigned>(rows), static_cast<unsigned>(threads), sizeof(RowShared),
         stream, x, count, out);
}

void launch_shuffles(void* stream, uint32_t* out) { launch(shuffles, 1, 32, 0, stream, out); }

void launch_block_votes(void* stream, const int* x, int threads, int* out) {
  launch(block_votes, 1, static_cast<unsigned>(threads), 0, stream, x, out);
}

void launch_histogram(void* stream, const int* values, int count, int bins, int* counts,
                      int* largest, float* sum) {
  launch(histogram, blocks(count, 128), 128, sizeof(int) * static_cast<size_t>(bins), stream,
         values, count, bins, counts, largest, sum);
}

void launch_scale(void* stream, const float* x, float scale, int count, float* y) {
  scale_by(stream, x, scale, count, y);
}

void launch_scale(void* stream, const Bf16* x, float scale, int count, Bf16* y) {
  scale_by(stream, reinterpret_cast<const bf16*>(x), scale, count, reinterpret_cast<bf16*>(y));
}

void launch_matmul(void* stream, const Bf16* A, const Bf16* B, int M, int N, int K, bool a_by_k,
                   bool b_by_k, float* C) {
  const auto kernel = a_by_k ? (b_by_k ? matmul<true, true> : matmul<true, false>)
                             : (b_by_k ? matmul<false, true> : matmul<false, false>);
  launch(kernel, {blocks(N, kTile), blocks(M, kTile)}, 128, sizeof(MatmulShared), stream,
         reinterpret_cast<const bf16*>(A), reinterpret_cast<const bf16*>(B), M, N, K, C);
}

void launch_relay(void* stream, const float* x, int steps, float* y) {
  launch(relay, 1, 64, sizeof(RelayShared), stream, x, steps, y);
}

void launch_gelu(void* stream, const float* x, int count, float* out) {
  launch(gelus, blocks(count, 256), 256, 0, stream, x, count, out);
}

void launch_philox(void* stream, uint64_t seed, uint32_t utterance, uint32_t update, uint32_t site,
                   int count, uint32_t* out) {
  launch(philox_bits, blocks(count, 64), 64, 0, stream, seed, utterance, update, site, count, out);
}

}  // namespace sft::test
