// Driver: what a Runtime needs of a device. Two twins: native.cpp (cudart, cuBLASLt, cuDNN) and
// emulator/runtime.cpp (host memory), which the tests link. Everything but send() happens in the
// order of one stream.
//
// A failing call throws Kind::resource and names itself; errors of kernels come at a later call.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "engine/cuda/commands.h"
#include "engine/cuda/gemm_choices.h"

namespace sft::cuda {

// Commands that a driver can start all at once.
class Graph {
 public:
  virtual ~Graph() = default;
  // Command i is from now on as in this list, whose structure is the captured one's: a product is
  // the same but for its padding, which is nothing to a library.
  virtual void patch(const Commands& commands, size_t i) = 0;
  virtual void launch() = 0;
};

class Driver {
 public:
  virtual ~Driver() = default;

  virtual std::string name() const = 0;
  virtual int64_t free_bytes() const = 0;
  virtual int multiprocessors() const = 0;

  virtual void* allocate(int64_t bytes) = 0;  // aligned to 256
  virtual void release(void* memory) noexcept = 0;
  virtual void* allocate_pinned(int64_t bytes) = 0;  // of the host
  virtual void release_pinned(void* memory) noexcept = 0;

  virtual void run(const KernelCall& call) = 0;
  virtual void run(const Gemm& product) = 0;
  virtual void run(const Fill& fill) = 0;
  virtual void run(const Copy& copy) = 0;
  virtual void run(const Upload& upload) = 0;
  virtual void run(const LstmPass& pass) = 0;
  virtual void download(void* to, const void* from, int64_t bytes) = 0;  // `to` pinned, or wait
  // From pinned memory on a second stream, while commands go on: nothing that may still run reads
  // what lies there.
  virtual void send(void* to, const void* from, int64_t bytes) = 0;
  virtual void receive() = 0;  // commands from here on come after all that was sent

  // As a Runtime's.
  virtual std::string lstm_library() = 0;
  virtual std::shared_ptr<const LstmPlan> lstm_plan(const LstmShape& shape,
                                                    std::span<const int32_t> starts) = 0;

  virtual GemmChoices gemm_choices() const = 0;  // as a Runtime's, but for LSTM layers
  virtual int64_t use_gemm_choices(const GemmChoices& recorded) = 0;

  static constexpr int kEvents = 32;
  virtual void mark(int event) = 0;      // after everything so far
  virtual void wait_for(int event) = 0;  // until its latest mark has been reached
  virtual void wait() = 0;               // for everything so far

  // As a Runtime's.
  virtual int64_t moment() = 0;
  virtual double seconds(int64_t from, int64_t to) = 0;
  virtual void forget_moments() = 0;
  virtual std::string kernel_name(const void* function) const = 0;

  // A graph of commands [begin, end), all of which have run before; no LSTM layers. Nothing runs.
  virtual std::unique_ptr<Graph> capture(const Commands& commands, size_t begin, size_t end) = 0;
};

void run(Driver& driver, const Commands& commands, size_t i);

// Of a driver to which no further call will succeed.
[[noreturn]] void device_lost(std::string_view where, std::string_view why);

// SFT_SYNC=1 is in the environment: every kernel is waited for.
bool synchronous();

// Memory of a driver, given back to it.
class DriverMemory {
 public:
  DriverMemory() = default;
  static DriverMemory of_device(Driver& driver, int64_t bytes) {
    return {driver, driver.allocate(bytes), bytes, false};
  }
  static DriverMemory pinned(Driver& driver, int64_t bytes) {
    return {driver, driver.allocate_pinned(bytes), bytes, true};
  }
  DriverMemory(DriverMemory&& other) noexcept { swap(other); }
  DriverMemory& operator=(DriverMemory&& other) noexcept {
    swap(other);
    return *this;
  }
  ~DriverMemory() {
    if (pinned_ && memory_) driver_->release_pinned(memory_);
    if (!pinned_ && memory_) driver_->release(memory_);
  }
  char* bytes() const { return memory_; }
  int64_t size() const { return size_; }

 private:
  DriverMemory(Driver& driver, void* memory, int64_t size, bool pinned)
      : driver_(&driver), memory_(static_cast<char*>(memory)), size_(size), pinned_(pinned) {}
  void swap(DriverMemory& other) noexcept {
    std::swap(driver_, other.driver_), std::swap(memory_, other.memory_);
    std::swap(size_, other.size_), std::swap(pinned_, other.pinned_);
  }

  Driver* driver_ = nullptr;
  char* memory_ = nullptr;
  int64_t size_ = 0;
  bool pinned_ = false;
};

// Device 0 of those visible. No driver, no device, an architecture this program has no code for:
// Kind::resource with a hint. Null in a program without CUDA: then nothing here is reached.
[[gnu::weak]] std::unique_ptr<Driver> open_driver();

}  // namespace sft::cuda
