// Runs CUDA kernels on the host, in tests, where there is no GPU: what a kernel sees instead of
// CUDA's headers (through engine/cuda/device.cuh), and how tests steer it.
//
// A block is its threads, one fiber each; blocks run one after the other, on one core. A thread
// runs until it must meet others (barrier, shuffle, mma): so a thread that runs first has not seen
// what the others write, and a missing barrier gives other bits in another ThreadOrder. Dynamic
// shared memory is a heap block of exactly the size asked for, all bytes 0xFF (NaN) when a block
// starts.
//
// Errors (sft::Error, kind internal, thrown by the launch): a barrier that not all threads of the
// block reach at the same line, threads that wait for each other, lanes that meet in different
// functions, addresses that are misaligned or not in shared memory, cp.async never awaited, and
// launches no GPU would take. The text names the place in the kernel, the block, the thread and the
// launch. Under AddressSanitizer accesses outside a buffer are reported with those two as well.
//
// Stricter than a GPU: __syncthreads wants all threads of the block, none returned; a warp-wide
// function wants all lanes of its mask at one source line (lanes that the block does not have are
// taken off the mask).
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>
#include <tuple>
#include <type_traits>
#include <utility>

#include "engine/cuda/emulator/counts.h"
#include "engine/cuda/emulator/thread_order.h"

// ---- what CUDA's headers define
#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

// Those of the thread that runs.
inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;
inline constexpr int warpSize = 32;

// ---- the machine
namespace sft::cuda::emulator {

using Place = std::source_location;

struct Launch {
  dim3 grid, block;
  size_t shared_bytes;
  const void* kernel;
  const char* file;  // of the launch
  int line;
};
void run(const Launch& launch, void (*call)(const void*), const void* params);

void* shared_memory(size_t bytes, size_t alignment, Place where);

// All lanes of `mask` meet; the last to arrive combines their operands (those of absent lanes are
// null), then all go on. `name` is that of the function, for messages.
struct Lanes {
  void* operand[32];
  unsigned mask;
};
void meet(const char* name, unsigned mask, void* operand, void (*combine)(Lanes&), Place where);
void sync_warp(unsigned mask, Place where);

void check_whole_warp(const char* name, Place where);

// A whole warp's tree of op(value, value of the lane that differs in one bit), bits 16 8 4 2 1: the
// same bits as five shuffles, at the cost of one. Op commutes, so all lanes get the same.
template <class T, class Op>
T butterfly(T value, Op, Place where) {
  check_whole_warp("a warp's reduction", where);
  meet(
      "a warp's reduction", ~0u, &value,
      [](Lanes& lanes) {
        T tree[32];
        for (int l = 0; l < 32; ++l) tree[l] = *static_cast<T*>(lanes.operand[l]);
        for (int half = 16; half > 0; half /= 2)
          for (int l = 0; l < half; ++l) tree[l] = Op{}(tree[l], tree[l + half]);
        for (void* lane : lanes.operand) *static_cast<T*>(lane) = tree[0];
      },
      where);
  return value;
}

// The lanes' integers by one operation, for all of them.
template <class T, class Op>
T reduce(const char* name, unsigned mask, T value, Op, Place where) {
  static_assert(std::is_integral_v<T> && sizeof(T) == 4);
  meet(
      name, mask, &value,
      [](Lanes& lanes) {
        T all = *static_cast<T*>(lanes.operand[std::countr_zero(lanes.mask)]);
        for (unsigned left = lanes.mask & (lanes.mask - 1); left; left &= left - 1)
          all = Op{}(all, *static_cast<T*>(lanes.operand[std::countr_zero(left)]));
        for (void* lane : lanes.operand)
          if (lane) *static_cast<T*>(lane) = all;
      },
      where);
  return value;
}

// What a lane sends, the lane it reads, what it gets.
struct Shuffle {
  uint64_t bits;
  int from;
  uint64_t result;
};
void shuffle(const char* name, unsigned mask, Shuffle& lane, Place where);
unsigned vote(const char* name, unsigned mask, bool predicate, Place where);  // the ballot
// The lanes that have the same value.
unsigned match(const char* name, unsigned mask, uint64_t value, Place where);
int lane_id();

template <class T>
T shuffled(const char* name, unsigned mask, T value, int from, Place where) {
  static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
  Shuffle lane{0, from, 0};
  std::memcpy(&lane.bits, &value, sizeof(T));
  shuffle(name, mask, lane, where);
  std::memcpy(&value, &lane.result, sizeof(T));
  return value;
}

// The number of threads of the block whose predicate holds.
int block_barrier(const char* name, bool predicate, Place where);
void named_barrier(int id, int threads, bool wait, Place where);

[[noreturn]] void misaligned(const void* address, size_t bytes, Place where);
inline void check_aligned(const void* address, size_t bytes, Place where) {
  if (reinterpret_cast<uintptr_t>(address) % bytes) [[unlikely]]
    misaligned(address, bytes, where);
}
void cp_async(void* shared, const void* global, size_t bytes, bool valid, Place where);
void cp_async_commit();
void cp_async_wait(int newest);
// `count` 8 x 8 matrices of 16 bits; lane l holds the address of row l % 8 of matrix l / 8.
void ldmatrix(uint32_t* registers, int count, bool transposed, const void* row, Place where);
void mma_m16n8k16_bf16(float* acc, const uint32_t* a, const uint32_t* b, Place where);
[[noreturn]] void trap(Place where);

}  // namespace sft::cuda::emulator

// ---- meetings of the block
inline void __syncthreads(sft::cuda::emulator::Place where = std::source_location::current()) {
  sft::cuda::emulator::block_barrier("__syncthreads", false, where);
}
inline int __syncthreads_count(int predicate,
                               sft::cuda::emulator::Place where = std::source_location::current()) {
  return sft::cuda::emulator::block_barrier("__syncthreads_count", predicate, where);
}
inline int __syncthreads_or(int predicate,
                            sft::cuda::emulator::Place where = std::source_location::current()) {
  return sft::cuda::emulator::block_barrier("__syncthreads_or", predicate, where) != 0;
}
inline int __syncthreads_and(int predicate,
                             sft::cuda::emulator::Place where = std::source_location::current()) {
  return sft::cuda::emulator::block_barrier("__syncthreads_and", !predicate, where) == 0;
}

// ---- meetings of a warp
inline void __syncwarp(unsigned mask = ~0u,
                       sft::cuda::emulator::Place where = std::source_location::current()) {
  sft::cuda::emulator::sync_warp(mask, where);
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32,
              sft::cuda::emulator::Place where = std::source_location::current()) {
  const int self = sft::cuda::emulator::lane_id();
  const int from = (self & ~(width - 1)) | (lane & (width - 1));
  return sft::cuda::emulator::shuffled("__shfl_sync", mask, value, from, where);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 sft::cuda::emulator::Place where = std::source_location::current()) {
  const int self = sft::cuda::emulator::lane_id(), first = self & ~(width - 1);
  const int from = self - static_cast<int>(delta);
  return sft::cuda::emulator::shuffled("__shfl_up_sync", mask, value, from < first ? self : from,
                                       where);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                   sft::cuda::emulator::Place where = std::source_location::current()) {
  const int self = sft::cuda::emulator::lane_id(), last = self | (width - 1);
  const int from = self + static_cast<int>(delta);
  return sft::cuda::emulator::shuffled("__shfl_down_sync", mask, value, from > last ? self : from,
                                       where);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                  sft::cuda::emulator::Place where = std::source_location::current()) {
  const int self = sft::cuda::emulator::lane_id(), from = self ^ bits;
  return sft::cuda::emulator::shuffled("__shfl_xor_sync", mask, value,
                                       from > (self | (width - 1)) ? self : from, where);
}
inline unsigned __ballot_sync(unsigned mask, int predicate,
                              sft::cuda::emulator::Place where = std::source_location::current()) {
  return sft::cuda::emulator::vote("__ballot_sync", mask, predicate, where);
}
inline int __any_sync(unsigned mask, int predicate,
                      sft::cuda::emulator::Place where = std::source_location::current()) {
  return sft::cuda::emulator::vote("__any_sync", mask, predicate, where) != 0;
}
inline int __all_sync(unsigned mask, int predicate,
                      sft::cuda::emulator::Place where = std::source_location::current()) {
  return sft::cuda::emulator::vote("__all_sync", mask, !predicate, where) == 0;
}

template <class T>
T __reduce_add_sync(unsigned mask, T value,
                    sft::cuda::emulator::Place where = std::source_location::current()) {
  return sft::cuda::emulator::reduce("__reduce_add_sync", mask, value, std::plus<T>{}, where);
}
template <class T>
T __reduce_min_sync(unsigned mask, T value,
                    sft::cuda::emulator::Place where = std::source_location::current()) {
  const auto smaller = [](T a, T b) { return b < a ? b : a; };
  return sft::cuda::emulator::reduce("__reduce_min_sync", mask, value, smaller, where);
}
template <class T>
T __reduce_max_sync(unsigned mask, T value,
                    sft::cuda::emulator::Place where = std::source_location::current()) {
  const auto larger = [](T a, T b) { return a < b ? b : a; };
  return sft::cuda::emulator::reduce("__reduce_max_sync", mask, value, larger, where);
}
inline unsigned __reduce_and_sync(
    unsigned mask, unsigned value,
    sft::cuda::emulator::Place where = std::source_location::current()) {
  return sft::cuda::emulator::reduce("__reduce_and_sync", mask, value, std::bit_and<unsigned>{},
                                     where);
}
inline unsigned __reduce_or_sync(
    unsigned mask, unsigned value,
    sft::cuda::emulator::Place where = std::source_location::current()) {
  return sft::cuda::emulator::reduce("__reduce_or_sync", mask, value, std::bit_or<unsigned>{},
                                     where);
}
template <class T>
unsigned __match_any_sync(unsigned mask, T value,
                          sft::cuda::emulator::Place where = std::source_location::current()) {
  return sft::cuda::emulator::match("__match_any_sync", mask, value, where);
}

// ---- atomics: one thread runs at a time
template <class T, class F>
T emulated_atomic(T* at, F&& change) {
  const T old = *at;
  *at = change(old);
  return old;
}
template <class T>
T atomicAdd(T* at, std::type_identity_t<T> v) {
  return emulated_atomic(at, [&](T old) { return static_cast<T>(old + v); });
}
template <class T>
T atomicSub(T* at, std::type_identity_t<T> v) {
  return emulated_atomic(at, [&](T old) { return static_cast<T>(old - v); });
}
template <class T>
T atomicMax(T* at, std::type_identity_t<T> v) {
  static_assert(std::is_integral_v<T>);
  return emulated_atomic(at, [&](T old) { return old < v ? v : old; });
}
template <class T>
T atomicMin(T* at, std::type_identity_t<T> v) {
  static_assert(std::is_integral_v<T>);
  return emulated_atomic(at, [&](T old) { return v < old ? v : old; });
}
template <class T>
T atomicAnd(T* at, std::type_identity_t<T> v) {
  return emulated_atomic(at, [&](T old) { return old & v; });
}
template <class T>
T atomicOr(T* at, std::type_identity_t<T> v) {
  return emulated_atomic(at, [&](T old) { return old | v; });
}
template <class T>
T atomicXor(T* at, std::type_identity_t<T> v) {
  return emulated_atomic(at, [&](T old) { return old ^ v; });
}
template <class T>
T atomicExch(T* at, std::type_identity_t<T> v) {
  return emulated_atomic(at, [&](T) { return v; });
}
template <class T>
T atomicCAS(T* at, std::type_identity_t<T> expected, std::type_identity_t<T> v) {
  return emulated_atomic(at, [&](T old) { return old == expected ? v : old; });
}
inline unsigned atomicInc(unsigned* at, unsigned limit) {
  return emulated_atomic(at, [&](unsigned old) { return old >= limit ? 0 : old + 1; });
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- memory, arithmetic
template <class T>
T emulated_load(const T* at, sft::cuda::emulator::Place where) {
  sft::cuda::emulator::check_aligned(at, alignof(T), where);
  return *at;
}
template <class T>
T __ldg(const T* at, sft::cuda::emulator::Place where = std::source_location::current()) {
  return emulated_load(at, where);
}
template <class T>
T __ldcg(const T* at, sft::cuda::emulator::Place where = std::source_location::current()) {
  return emulated_load(at, where);
}
template <class T>
T __ldcs(const T* at, sft::cuda::emulator::Place where = std::source_location::current()) {
  return emulated_load(at, where);
}
template <class T>
void __stcg(T* at, std::type_identity_t<T> v,
            sft::cuda::emulator::Place where = std::source_location::current()) {
  sft::cuda::emulator::check_aligned(at, alignof(T), where);
  *at = v;
}
template <class T>
void __stcs(T* at, std::type_identity_t<T> v,
            sft::cuda::emulator::Place where = std::source_location::current()) {
  sft::cuda::emulator::check_aligned(at, alignof(T), where);
  *at = v;
}

#define SFT_MIN_MAX(T)                                \
  constexpr T min(T a, T b) { return b < a ? b : a; } \
  constexpr T max(T a, T b) { return a < b ? b : a; }
SFT_MIN_MAX(int)
SFT_MIN_MAX(unsigned)
SFT_MIN_MAX(long)
SFT_MIN_MAX(unsigned long)
SFT_MIN_MAX(long long)
SFT_MIN_MAX(unsigned long long)
#undef SFT_MIN_MAX
inline float min(float a, float b) { return std::fmin(a, b); }
inline float max(float a, float b) { return std::fmax(a, b); }
inline double min(double a, double b) { return std::fmin(a, b); }
inline double max(double a, double b) { return std::fmax(a, b); }

using std::isfinite;
using std::isinf;
using std::isnan;

// The approximate functions of the GPU are exact here: tests allow for the difference.
inline float __expf(float x) { return std::exp(x); }
inline float __exp10f(float x) { return std::pow(10.f, x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __sinf(float x) { return std::sin(x); }
inline float __cosf(float x) { return std::cos(x); }
inline float __tanhf(float x) { return std::tanh(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1 / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fdiv_rn(float x, float y) { return x / y; }
inline float __fmaf_rn(float x, float y, float z) { return std::fma(x, y, z); }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline double rsqrt(double x) { return 1 / std::sqrt(x); }
inline float __saturatef(float x) { return x > 0 ? std::fmin(x, 1.f) : 0; }
// Not contracted to a fused multiply-add.
inline float __fadd_rn(float x, float y) { return x + y; }
inline float __fsub_rn(float x, float y) { return x - y; }
inline float __fmul_rn(float x, float y) { return x * y; }

inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
inline int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
inline float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
inline long long __double_as_longlong(double x) { return __builtin_bit_cast(long long, x); }
inline double __longlong_as_double(long long x) { return __builtin_bit_cast(double, x); }
inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline int __float2int_rd(float x) { return static_cast<int>(std::floor(x)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x ? __builtin_clz(static_cast<unsigned>(x)) : 32; }
inline unsigned __brev(unsigned x) {
  unsigned reversed = 0;
  for (int bit = 0; bit < 32; ++bit) reversed = reversed << 1 | (x >> bit & 1);
  return reversed;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(uint64_t{a} * b >> 32);
}
inline int __mulhi(int a, int b) { return static_cast<int>(int64_t{a} * b >> 32); }
inline void __trap(sft::cuda::emulator::Place where = std::source_location::current()) {
  sft::cuda::emulator::trap(where);
}
