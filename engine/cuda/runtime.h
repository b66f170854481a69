// Runtime: the few things that the engine asks of a CUDA device.
//
// Kernels' entries under cuda:: are declared weak: the engine is compiled once, and a program has
// CUDA if the kernels are linked into it. Without them there is no driver to make a Runtime of
// (driver.h), and nothing is reached, because a Device::cuda tensor cannot be had without one.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <type_traits>

#include "engine/cuda/kernel_call.h"
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
  // So many of the last rows of C are of no use, or of the last terms of its sums, where A is
  // transposed, nothing: there A is zero and B finite.
  int64_t padding = 0;
  bool operator==(const Gemm&) const = default;
};

class Driver;
class Runtime;

// A value of a few bytes that a device computes and the host reads when it needs it; good for the
// next 31 steps.
class Late {
 public:
  static constexpr int64_t kBytes = 64;

  Late() = default;
  Late(const void* value, int64_t bytes) { std::memcpy(value_.data(), value, bytes); }  // is there

  // Waits for the step that computes it, and for nothing younger. Not before that step's end.
  template <class T>
  T get() const {
    static_assert(sizeof(T) <= kBytes && std::is_trivially_copyable_v<T>);
    T value;
    read(&value, sizeof value);
    return value;
  }

 private:
  friend class Runtime;
  Late(Runtime* from, int64_t step, int64_t slot) : from_(from), step_(step), slot_(slot) {}
  void read(void* to, size_t bytes) const;

  std::array<std::byte, kBytes> value_{};
  Runtime* from_ = nullptr;  // null: the value is here
  int64_t step_ = 0, slot_ = 0;
};

struct GemmChoices;  // gemm_choices.h
struct LstmChoices;  // lstm_pass.h
struct LstmPass;
struct LstmPlan;
struct LstmShape;

// What became of the steps so far.
struct StepCounts {
  int64_t steps = 0, commands = 0;
  int64_t captured = 0, replayed = 0;  // steps; the others ran command by command
  int64_t patched = 0;                 // commands of replayed steps with other values than before
  int64_t evicted = 0;                 // graphs
  std::string refused;                 // why there are no graphs, if the device makes none

  std::string text() const;  // "12 captured, 988 of 1000 steps replayed"
};

// A device, one stream of it, and the *step* that may be open on it.
//
// Outside of a step everything happens at once, in order. Inside (StepScope) it is queued, and done
// when the step ends: so that a step like an earlier one starts as one captured graph
// (step_graphs.h), all its lists go up together (step_lists.h), and the host is a step ahead.
// Nothing can be read back inside a step but by late(). SFT_SYNC=1 in the environment: steps queue
// nothing and each kernel is waited for, so that an error names the right one.
//
// A failing call throws Kind::resource and names itself; errors of kernels come at a later call.
class Runtime {
 public:
  explicit Runtime(std::unique_ptr<Driver> driver);
  ~Runtime();
  Runtime(const Runtime&) = delete;
  Runtime& operator=(const Runtime&) = delete;

  std::string name() const;    // "NVIDIA H200, 132 multiprocessors"
  int64_t free_bytes() const;  // of device memory
  int multiprocessors() const;
  StreamHandle stream() { return this; }  // for launch()

  void* allocate(int64_t bytes);  // aligned to 256
  void release(void* memory) noexcept;

  void launch(const KernelCall& call);
  void gemm(const Gemm& product);
  void lstm(const LstmPass& pass);
  void fill(void* to, uint8_t byte, int64_t bytes);
  void copy(void* to, const void* from, int64_t bytes);    // on the device, disjoint
  void upload(void* to, const void* from, int64_t bytes);  // `from` is free at return
  // A host list where kernels read it: at `to`, or in memory of the step.
  const void* list(void* to, const void* from, int64_t bytes);

  void download(void* to, const void* from, int64_t bytes);  // waits for the stream
  void synchronize();
  // What lies there when everything asked for so far is done; at most Late::kBytes. At most 64 in a
  // step.
  Late late(const void* from, int64_t bytes);
  void read(const Late& late, void* to, size_t bytes);  // Late::get

  void begin_step();
  void end_step();
  void drop_step() noexcept;  // nothing of what is queued will run
  // Inside a step: runs what is queued and waits for it, so that it can be downloaded. Costs the
  // step its graph.
  void flush();
  bool in_step() const;
  const StepCounts& step_counts() const;

  // Outside of steps: marks the moment when all that was asked for before is done, and seconds from
  // one to another; waits for the later. Numbers begin anew when they are forgotten.
  int64_t moment();
  double seconds(int64_t from, int64_t to);
  void forget_moments();
  std::string kernel_name(const void* function) const;  // empty where it is not known

  // The library that computes LSTM layers, and its plan for utterances that begin there. There is
  // no library, or it refuses: Kind::resource.
  std::string lstm_library();
  std::shared_ptr<const LstmPlan> lstm_plan(const LstmShape& shape,
                                            std::span<const int32_t> starts);
  LstmChoices& lstm_choices();  // for engine/ops/lstm_library.h

  // How every product and LSTM layer so far was computed, and those below were to be.
  GemmChoices gemm_choices() const;
  // Products and layers of these kinds are computed so from now on. How many products are not,
  // because their library or device is another or refuses the algorithm: they are chosen anew.
  int64_t use_gemm_choices(const GemmChoices& recorded);

 private:
  struct Steps;

  std::unique_ptr<Driver> driver_;
  std::unique_ptr<Steps> steps_;
};

// A step of a device, until end() or, if that is not reached, dropped. On the CPU (null): nothing.
class StepScope {
 public:
  explicit StepScope(Runtime* gpu) : gpu_(gpu) {
    if (gpu_) gpu_->begin_step();
  }
  ~StepScope() {
    if (gpu_) gpu_->drop_step();
  }
  void end() {
    if (gpu_) gpu_->end_step();
    gpu_ = nullptr;
  }
  StepScope(const StepScope&) = delete;
  StepScope& operator=(const StepScope&) = delete;

 private:
  Runtime* gpu_;
};

}  // namespace sft::cuda
