// What a device is told to do, kept to be done later: the kernels, products, LSTM layers, fills and
// copies of a step, in order, each with all that it needs.
//
// The structure of a list is everything but the values of kernels' parameters and where uploads
// come from. Lists of one structure do the same work on the same memory: a graph made of one serves
// the others once their parameters are put into it.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <variant>
#include <vector>

#include "engine/cuda/kernel_call.h"
#include "engine/cuda/lstm_pass.h"
#include "engine/cuda/runtime.h"

namespace sft::cuda {

struct Kernel {
  KernelCall call;    // without args
  int64_t begin = 0;  // of its parameters, in bytes of the list
  bool operator==(const Kernel& other) const {
    return call.function == other.call.function && call.grid == other.call.grid &&
           call.block == other.call.block && call.shared_bytes == other.call.shared_bytes;
  }
};

struct Fill {
  void* to;
  uint8_t byte;
  int64_t bytes;
  bool operator==(const Fill&) const = default;
};

// Of device memory, disjoint.
struct Copy {
  void* to;
  const void* from;
  int64_t bytes;
  bool operator==(const Copy&) const = default;
};

// From pinned memory, or from where it was sent to; which stays as it is until this has been done.
struct Upload {
  void* to;
  const void* from;
  int64_t bytes;
  bool operator==(const Upload& other) const { return to == other.to && bytes == other.bytes; }
};

using Command = std::variant<Kernel, Gemm, Fill, Copy, Upload, LstmPass>;

class Commands {
 public:
  void add(const KernelCall& call);
  void add(const Command& command) { list_.push_back(command); }  // no kernel
  void clear() { list_.clear(), bytes_.clear(); }

  size_t size() const { return list_.size(); }
  bool empty() const { return list_.empty(); }
  const Command& operator[](size_t i) const { return list_[i]; }

  // Room for the addresses of a kernel's parameters.
  using Args = std::array<void*, kMaxParams>;
  KernelCall call(const Kernel& kernel, Args& args) const;

  uint64_t structure() const;  // a hash
  bool same_structure(const Commands& other) const { return list_ == other.list_; }
  // Command i gets the values it has in a list of the same structure. Whether they are others.
  bool take_values(const Commands& from, size_t i);

 private:
  std::vector<Command> list_;
  std::vector<std::byte> bytes_;  // parameters, each 16-aligned
};

}  // namespace sft::cuda
