// What the emulator has run since the program began.
#pragma once

#include <cstdint>

namespace sft::cuda::emulator {

struct Counts {
  uint64_t launches = 0, kernels = 0, blocks = 0, threads = 0;  // kernels: different ones
};

// Null where kernels are not emulated.
[[gnu::weak]] Counts launches();

}  // namespace sft::cuda::emulator
