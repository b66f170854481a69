// Runtime: the few things that the engine asks of a CUDA device, in the order of one stream. Two
// twins: native.cpp (cudart, cuBLASLt) and emulator/runtime.cpp (host memory), which the tests
// link.
//
// Everything under cuda:: that other folders call is declared weak: the engine is compiled once,
// and a program has CUDA if the kernels are linked into it. Without them open_runtime is null;
// nothing else is reached, because a Device::cuda tensor cannot be had without a Runtime.
//
// A failing call throws Kind::resource and names itself; errors of kernels come at the next call.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>

#include "engine/tensor.h"

namespace sft::cuda {

// C [M, N] = op(A) op(B) + bias + beta from, row-major; ld: elements from row to row as stored. A
// and B have one type (f32 or bf16), sums are f32, C is f32 or bf16. K = 0: a sum of nothing is
// zero.
struct Gemm {
  bool transpose_a = false, transpose_b = false;
  int64_t M = 0, N = 0, K = 0;
  const void* A = nullptr;
  int64_t lda = 0;
  const void* B = nullptr;
  int64_t ldb = 0;
  Dtype in = Dtype::f32;
  float beta = 0;              // 0 (`from` may be anything) or 1
  const void* from = nullptr;  // [M, N], of C's type; null: C itself
  int64_t ldfrom = 0;
  const void* bias = nullptr;  // [N], of C's type; null: none
  void* C = nullptr;
  int64_t ldc = 0;
  Dtype out = Dtype::f32;
};

// A value of a few bytes that a device computes and the host reads when it needs it. Good for the
// next 32 steps.
class Late {
 public:
  static constexpr int64_t kBytes = 64;

  Late() = default;
  Late(const void* value, int64_t bytes) { std::memcpy(value_.data(), value, bytes); }

  // Waits for the step that computes it, and for nothing younger.
  template <class T>
  T get() const {
    static_assert(sizeof(T) <= kBytes && std::is_trivially_copyable_v<T>);
    T value;
    std::memcpy(&value, value_.data(), sizeof value);
    return value;
  }

 private:
  std::array<std::byte, kBytes> value_{};
};

struct GemmChoices;  // gemm_choices.h

class Runtime {
 public:
  virtual ~Runtime() = default;

  virtual std::string name() const = 0;    // "NVIDIA H200, 132 multiprocessors"
  virtual int64_t free_bytes() const = 0;  // of device memory
  virtual int multiprocessors() const = 0;
  virtual void* stream() const = 0;  // a cudaStream_t

  virtual void* allocate(int64_t bytes) = 0;  // aligned to 256
  virtual void release(void* memory) noexcept = 0;

  virtual void fill(void* to, uint8_t byte, int64_t bytes) = 0;
  virtual void copy(void* to, const void* from, int64_t bytes) = 0;      // on the device, disjoint
  virtual void upload(void* to, const void* from, int64_t bytes) = 0;    // `from` is free at return
  virtual void download(void* to, const void* from, int64_t bytes) = 0;  // waits for the stream
  // What lies there when everything issued so far is done; at most Late::kBytes.
  Late late(const void* from, int64_t bytes) {
    std::array<std::byte, Late::kBytes> value{};
    download(value.data(), from, bytes);
    return {value.data(), bytes};
  }
  virtual void synchronize() = 0;

  virtual void gemm(const Gemm& product) = 0;
  // How every product so far was computed, and those below were to be.
  virtual GemmChoices gemm_choices() const = 0;
  // Products of these kinds are computed so from now on. How many are not, because their library or
  // device is another or refuses the algorithm: they are chosen anew.
  virtual int64_t use_gemm_choices(const GemmChoices& recorded) = 0;
};

// Device 0 of those visible. No driver, no device, an architecture this program has no code for:
// Kind::resource with a hint.
[[gnu::weak]] std::unique_ptr<Runtime> open_runtime();

}  // namespace sft::cuda
