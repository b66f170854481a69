// Derived weights: what kernels want to read in place of a parameter (packed GEMM panels, re-laid
// convolution taps, a kernel made from g and v, a converted copy). One cache, nothing else holds a
// copy of a weight. Keyed by (address of the parameter, kind).
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/arena.h"
#include "engine/rng.h"
#include "engine/tensor.h"

namespace sft {

class Prepared {
 public:
  // Where the forms lie: on the host, or in the memory of a device.
  explicit Prepared(cuda::Runtime* gpu = nullptr) : gpu_(gpu) {}

  // Addresses whose contents change only with weights_changed: the parameters of a store.
  void add_parameters(const void* begin, int64_t bytes);
  // Forms made of these bytes are made again on their next use, in the same memory.
  void weights_changed(const void* begin, int64_t bytes);
  int64_t bytes() const { return bytes_; }

  struct Form {
    const void* weight;
    uint32_t kind;
    int64_t bytes;
    std::unique_ptr<char, std::function<void(char*)>> memory;
    bool current;
  };
  bool owns(const void* weight) const;
  Form& form(const void* weight, uint32_t kind, int64_t bytes);
  Form* find(const void* weight, uint32_t kind);  // null: not made yet
  // Where the parameters begin that were added together with this one, and their bytes; of anything
  // else its own address and 0.
  std::pair<const void*, int64_t> added_with(const void* weight) const;

 private:
  char* allocate(int64_t bytes) const;

  struct Range {
    const char* begin;
    const char* end;
  };
  cuda::Runtime* gpu_;
  std::vector<Range> parameters_;
  std::deque<Form> forms_;  // forms stay where they are
  int64_t bytes_ = 0;
};

}  // namespace sft
