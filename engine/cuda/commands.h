// What a device is told to do, kept to be done later: the kernels, products, LSTM layers, fills and
// copies of a step, in order, each with all that it needs.
//
// The structure of a list is what cannot be put into a graph afterwards: which kernels and products
// there are, in which order, and all of a product. Kernels' parameters and grids can be, the memory
// and the length of fills, copies and uploads, and LSTM layers are in no graph. So a graph made of
// one list serves all of its structure.
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
  KernelCall call;                              // without args
  int64_t begin = 0;                            // of its parameters, in bytes of the list
  bool operator==(const Kernel& other) const {  // but for the parameters
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
  bool operator==(const Upload&) const = default;
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
  bool same_structure(const Commands& other) const;
  // Command i becomes what it is in a list of the same structure. Whether it was something else.
  bool take_values(const Commands& from, size_t i);

 private:
  bool take(Kernel& ours, const Commands& from, const Kernel& theirs);

  std::vector<Command> list_;
  std::vector<std::byte> bytes_;  // parameters, each 16-aligned
};

}  // namespace sft::cuda
