// What the emulator has run since the program began.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>

namespace sft::cuda::emulator {

struct Counts {
  uint64_t launches = 0, kernels = 0, blocks = 0, threads = 0;  // kernels: different ones
};

// The largest block a kernel was launched with.
struct Block {
  uint64_t threads = 0;
  size_t shared_bytes = 0;
};

// Null where kernels are not emulated.
[[gnu::weak]] Counts launches();
[[gnu::weak]] std::map<const void*, Block> largest_blocks();  // by the kernel's address

}  // namespace sft::cuda::emulator
