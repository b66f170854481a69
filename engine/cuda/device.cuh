// All that kernels see of CUDA. The same .cu files are compiled by nvcc (SFT_CUDA_NATIVE) and by
// g++ (SFT_CUDA_EMULATED), which runs them on the host: engine/cuda/emulator/emulator.h says how,
// and what it finds.
//
// Rules that make both work:
//   - No <<<>>>, no __shared__: launch() and shared_memory<Shared>().
//   - No fmt, and nothing that includes it (it does not compile under nvcc 13 in C++20).
//   - threadIdx, blockIdx, blockDim, gridDim, barriers, shuffles, votes, atomics, fmaxf, __expf ...
//     are CUDA's own. min and max: CUDA's, unqualified (std::min is host code).
//   - Tensor cores and cp.async: engine/cuda/ptx.cuh. Reductions: engine/cuda/reduce.cuh.
#pragma once

#include <cstddef>
#include <cstdint>
#include <tuple>
#include <type_traits>
#include <utility>

#include "engine/cuda/kernel_call.h"

#if defined(SFT_CUDA_NATIVE)
#include <cuda_runtime.h>
#elif defined(SFT_CUDA_EMULATED)
#include "engine/cuda/emulator/emulator.h"
#else
#error "kernels are compiled with SFT_CUDA_NATIVE or SFT_CUDA_EMULATED"
#endif

namespace sft::cuda {

// ---- launching

// A stream, and the line that launches on it (for messages).
struct LaunchOn {
  StreamHandle stream;
  const char* file;
  int line;
  LaunchOn(StreamHandle stream, const char* file = __builtin_FILE(), int line = __builtin_LINE())
      : stream(stream), file(file), line(line) {}
};

#if defined(SFT_CUDA_EMULATED)
template <class... Params, size_t... I>
void call_kernel(const void* function, void* const* args, std::index_sequence<I...>) {
  const auto kernel = reinterpret_cast<void (*)(Params...)>(const_cast<void*>(function));
  kernel(*static_cast<Params*>(args[I])...);
}
#endif

// kernel<<<grid, block, shared_bytes, stream>>>(args...). An empty grid launches nothing.
template <class... Params, class... Args>
void launch(void (*kernel)(Params...), dim3 grid, dim3 block, size_t shared_bytes, LaunchOn on,
            Args&&... args) {
  static_assert(sizeof...(Params) == sizeof...(Args), "launch: wrong number of arguments");
  static_assert(sizeof...(Params) <= kMaxParams);
  // A step keeps their bytes, 16-aligned, until the kernel runs.
  static_assert((std::is_trivially_copyable_v<Params> && ...));
  static_assert(((alignof(Params) <= 16) && ...));
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
  static constexpr uint32_t sizes[] = {sizeof(Params)..., 0};
  KernelCall call{.function = reinterpret_cast<const void*>(kernel),
                  .grid = {grid.x, grid.y, grid.z},
                  .block = {block.x, block.y, block.z},
                  .shared_bytes = static_cast<uint32_t>(shared_bytes),
                  .file = on.file,
                  .line = on.line,
                  .params = sizeof...(Params),
                  .sizes = sizes};
#if defined(SFT_CUDA_EMULATED)
  call.invoke = [](const void* function, void* const* p) {
    call_kernel<Params...>(function, p, std::index_sequence_for<Params...>{});
  };
#endif
  std::tuple<Params...> params(static_cast<Params>(std::forward<Args>(args))...);
  std::apply(
      [&](Params&... param) {
        void* const addresses[] = {&param..., nullptr};
        call.args = addresses;
        launch_kernel(on.stream, call);
      },
      params);
}

// ---- shared memory: one struct per kernel, launched with sizeof(Shared) bytes
#if defined(SFT_CUDA_NATIVE)
template <class Shared>
__device__ __forceinline__ Shared& shared_memory() {
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  return *reinterpret_cast<Shared*>(shared_bytes);
}
#else
template <class Shared>
Shared& shared_memory(emulator::Place where = std::source_location::current()) {
  return *static_cast<Shared*>(emulator::shared_memory(sizeof(Shared), alignof(Shared), where));
}
#endif

// ---- who am I (blocks of one dimension)
__device__ __forceinline__ int lane() { return static_cast<int>(threadIdx.x & 31u); }
__device__ __forceinline__ int warp() { return static_cast<int>(threadIdx.x >> 5); }
__device__ __forceinline__ int warps() { return static_cast<int>(blockDim.x >> 5); }
__host__ __device__ constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// ---- bf16: the upper half of a float. Rounds to nearest, ties to even; NaN becomes 0x7FFF.
struct bf16 {
  uint16_t bits;
};

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ float to_float(bf16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}

__device__ __forceinline__ bf16 to_bf16(float x) {
#if defined(SFT_CUDA_NATIVE)
  uint16_t bits;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return {bits};
#else
  const uint32_t bits = __float_as_uint(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return {0x7FFF};
  return {static_cast<uint16_t>((bits + 0x7FFFu + (bits >> 16 & 1u)) >> 16)};
#endif
}

// Two bf16 in a register, `low` in the lower half: what mma takes.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
#if defined(SFT_CUDA_NATIVE)
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
#else
  return static_cast<uint32_t>(to_bf16(high).bits) << 16 | to_bf16(low).bits;
#endif
}

__device__ __forceinline__ float2 unpack_bf16(uint32_t packed) {
  return make_float2(__uint_as_float(packed << 16), __uint_as_float(packed & 0xFFFF0000u));
}

// A float as T (float or bf16).
template <class T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (std::is_same_v<T, bf16>) {
    return to_bf16(x);
  } else {
    return x;
  }
}

// ---- 8 consecutive elements, as floats; addresses are multiples of 16 bytes
struct Float8 {
  float v[8];
};

#if defined(SFT_CUDA_EMULATED)
#define SFT_WHERE , emulator::Place where = std::source_location::current()
#define SFT_CHECK_ALIGNED(address) emulator::check_aligned(address, 16, where)
#else
#define SFT_WHERE
#define SFT_CHECK_ALIGNED(address) static_cast<void>(0)
#endif

__device__ __forceinline__ Float8 load8(const float* from SFT_WHERE) {
  SFT_CHECK_ALIGNED(from);
  const float4 a = reinterpret_cast<const float4*>(from)[0];
  const float4 b = reinterpret_cast<const float4*>(from)[1];
  return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}

__device__ __forceinline__ Float8 load8(const bf16* from SFT_WHERE) {
  SFT_CHECK_ALIGNED(from);
  const uint4 packed = *reinterpret_cast<const uint4*>(from);
  const float2 a = unpack_bf16(packed.x), b = unpack_bf16(packed.y);
  const float2 c = unpack_bf16(packed.z), d = unpack_bf16(packed.w);
  return {{a.x, a.y, b.x, b.y, c.x, c.y, d.x, d.y}};
}

__device__ __forceinline__ void store8(float* to, const Float8& x SFT_WHERE) {
  SFT_CHECK_ALIGNED(to);
  reinterpret_cast<float4*>(to)[0] = make_float4(x.v[0], x.v[1], x.v[2], x.v[3]);
  reinterpret_cast<float4*>(to)[1] = make_float4(x.v[4], x.v[5], x.v[6], x.v[7]);
}

__device__ __forceinline__ void store8(bf16* to, const Float8& x SFT_WHERE) {
  SFT_CHECK_ALIGNED(to);
  *reinterpret_cast<uint4*>(to) = make_uint4(pack_bf16(x.v[0], x.v[1]), pack_bf16(x.v[2], x.v[3]),
                                             pack_bf16(x.v[4], x.v[5]), pack_bf16(x.v[6], x.v[7]));
}

#undef SFT_WHERE
#undef SFT_CHECK_ALIGNED

}  // namespace sft::cuda
