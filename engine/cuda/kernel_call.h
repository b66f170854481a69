// A launch of a kernel as it goes from a .cu file to the engine: no templates, nothing of CUDA.
#pragma once

#include <cstddef>
#include <cstdint>

namespace sft::cuda {

struct Extent {
  uint32_t x = 1, y = 1, z = 1;
  bool operator==(const Extent&) const = default;
};

constexpr int kMaxParams = 48;  // of a kernel

struct KernelCall {
  const void* function = nullptr;
  Extent grid, block;
  uint32_t shared_bytes = 0;
  const char* file = "";  // of the launch, for messages
  int line = 0;
  // Calls the function with these parameters as one thread does: the emulator's; null natively.
  void (*invoke)(const void* function, void* const* args) = nullptr;
  int params = 0;
  const uint32_t* sizes = nullptr;  // [params] bytes; of the program's life
  void* const* args = nullptr;      // [params] where each lies; for the call
};

using StreamHandle = void*;  // of Runtime::stream()

// Runs the kernel, or queues it in the step that its stream is in. Errors: see runtime.h.
void launch_kernel(StreamHandle stream, const KernelCall& call);

}  // namespace sft::cuda
