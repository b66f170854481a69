// Small right kernels, each of one feature of engine/cuda/{device,reduce,ptx}.cuh. Pointers are to
// memory that kernels can read. Instantiated for what tests/cuda/kernels.cpp uses.
#pragma once

#include <cstdint>

namespace sft::test {

struct Bf16 {  // the bits of cuda::bf16
  uint16_t bits;
};

// A block of `threads` over count elements of each row. out[r] = {sum, max, sum in double}.
void launch_row_sums(void* stream, const float* x, int rows, int count, int threads, double* out);

// One warp; out[i * 32 + lane] for i = shfl of lane 3, up 1, down 2, xor 5 (in halves of 16 lanes),
// ballot of odd lanes, any of lane > 40, all of lane < 40, the sum of lanes < 8 by a masked
// shuffle, then integer add, min, max, and, or, and the match of lane % 4.
void launch_shuffles(void* stream, uint32_t* out);

// __syncthreads_count, _or, _and of x[thread] != 0 -> out[thread * 3 ...]
void launch_block_votes(void* stream, const int* x, int threads, int* out);

// Values into bins with shared and global atomics; also the maximum and the sum in float.
void launch_histogram(void* stream, const int* values, int count, int bins, int* counts,
                      int* largest, float* sum);

// y = scale * x through load8 and store8; count is a multiple of 8.
void launch_scale(void* stream, const float* x, float scale, int count, float* y);
void launch_scale(void* stream, const Bf16* x, float scale, int count, Bf16* y);

// C [M, N] = A [M, K] B: bf16, tensor cores, cp.async in two stages. B is [N, K], or [K, N] when
// b_by_k; A is [K, M] when a_by_k. M, N, K are any multiples of 8.
void launch_matmul(void* stream, const Bf16* A, const Bf16* B, int M, int N, int K, bool a_by_k,
                   bool b_by_k, float* C);

// A warp doubles what another one brings, through named barriers: y = 2 x, [steps, 32].
void launch_relay(void* stream, const float* x, int steps, float* y);

// gelu_and_slope(x): {value, slope} of each x.
void launch_gelu(void* stream, const float* x, int count, float* out);

// bits16 of call t / 8 for each t.
void launch_philox(void* stream, uint64_t seed, uint32_t utterance, uint32_t update, uint32_t site,
                   int count, uint32_t* out);

}  // namespace sft::test
