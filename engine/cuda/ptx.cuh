// One function per instruction that CUDA C++ has no name for (sm_80 and up). All 32 lanes of a warp
// call the warp-wide ones together. Layouts: PTX ISA, "Matrix fragments for mma.m16n8k16 with
// floating point type" and "ldmatrix"; with g = lane / 4 and t = lane % 4, low half first,
//   A [16, 16]  a[0] = A[g][2t, 2t+1]   a[1] = A[g+8][2t..]   a[2] = A[g][2t+8..]   a[3] =
//   A[g+8][2t+8..] B [16, 8]   b[0] = B[2t, 2t+1][g]   b[1] = B[2t+8, 2t+9][g] C [16, 8]   c[0],
//   c[1] = C[g][2t, 2t+1]   c[2], c[3] = C[g+8][2t, 2t+1] ldmatrix    an 8 x 8 matrix of 16 bits
//   gives r = M[g][2t, 2t+1], transposed M[2t, 2t+1][g]
// So A, stored by rows, is ldmatrix_x4 with lane l at row l % 16, column l / 16 * 8; B stored as
// [N, K] is ldmatrix_x2, as [K, N] it is ldmatrix_x2_trans.
#pragma once

#include "engine/cuda/device.cuh"

namespace sft::cuda {

#if defined(SFT_CUDA_NATIVE)

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// acc += A B, bf16 products summed in fp32.
__device__ __forceinline__ void mma_m16n8k16_bf16(float (&acc)[4], const uint32_t (&a)[4],
                                                  const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(acc[0]), "+f"(acc[1]), "+f"(acc[2]), "+f"(acc[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Matrices of 8 x 8 from shared memory; lane l gives the address of row l % 8 of matrix l / 8 (a
// multiple of 16 bytes; x2 uses those of lanes 0 to 15).
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x2(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}
__device__ __forceinline__ void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(shared_address(row))
               : "memory");
}

// 16 bytes from global to shared memory, both aligned; zeros when not valid (`global` is then not
// read). Done after cp_async_wait by this thread, and a barrier for the others.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(valid ? 16 : 0)
               : "memory");
}
// The same with 4 bytes, by way of the L1.
__device__ __forceinline__ void cp_async_4(void* shared, const void* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(shared_address(shared)),
               "l"(__cvta_generic_to_global(global)), "r"(valid ? 4 : 0)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until at most N of this thread's newest groups are on their way.
template <int N>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

// 2^x to 2^-22 relative, denormals flushed to zero: one instruction (exp2f takes four).
__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// threadIdx.x, read anew: what is made of it in a loop is not carried around it in registers.
__device__ __forceinline__ int thread_anew() {
  int x;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(x));
  return x;
}

// A barrier of `threads` threads of the block (whole warps); ids 1 to 15 are free.
__device__ __forceinline__ void named_barrier(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
// Counts as arrived there, without waiting.
__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

#else

using emulator::Place;

inline void mma_m16n8k16_bf16(float (&acc)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                              Place where = Place::current()) {
  emulator::mma_m16n8k16_bf16(acc, a, b, where);
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, Place where = Place::current()) {
  emulator::ldmatrix(r, 4, false, row, where);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, Place where = Place::current()) {
  emulator::ldmatrix(r, 4, true, row, where);
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row, Place where = Place::current()) {
  emulator::ldmatrix(r, 2, false, row, where);
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, Place where = Place::current()) {
  emulator::ldmatrix(r, 2, true, row, where);
}
inline void cp_async_16(void* shared, const void* global, bool valid,
                        Place where = Place::current()) {
  emulator::cp_async(shared, global, 16, valid, where);
}
inline void cp_async_4(void* shared, const void* global, bool valid,
                       Place where = Place::current()) {
  emulator::cp_async(shared, global, 4, valid, where);
}
inline void cp_async_commit() { emulator::cp_async_commit(); }
template <int N>
void cp_async_wait() {
  emulator::cp_async_wait(N);
}
inline float exp2_fast(float x) { return std::exp2(x); }
inline int thread_anew() { return static_cast<int>(threadIdx.x); }
inline void named_barrier(int id, int threads, Place where = Place::current()) {
  emulator::named_barrier(id, threads, true, where);
}
inline void named_barrier_arrive(int id, int threads, Place where = Place::current()) {
  emulator::named_barrier(id, threads, false, where);
}

#endif

}  // namespace sft::cuda
