// Opening the device that --device names.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "engine/cuda/runtime.h"
#include "engine/math.h"

namespace sft {

// "cpu": null. "cuda": its runtime; Kind::resource with a hint if this program or this machine has
// none, or has no arithmetic of this kind. Other names: Kind::usage.
std::unique_ptr<cuda::Runtime> open_device(std::string_view name, Math math = Math::exact);

namespace cuda {

// What the CUDA runtime says of this machine. Versions as CUDA has them: 13020 is 13.2.
struct DeviceFacts {
  int driver = 0;   // the newest CUDA that it serves; 0: there is none
  int program = 0;  // the CUDA that the program was built with
  int devices = 0;
  std::string name;  // of the first
  int major = 0, minor = 0;
  bool has_code = false;  // the program has kernels for its architecture
};
// Kind::resource, saying what is missing and what to do.
void check_usable(const DeviceFacts& facts);

}  // namespace cuda

}  // namespace sft
