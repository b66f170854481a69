// Lets tests lose the device, where kernels are emulated.
#pragma once

#include <cstdint>

namespace sft::cuda::emulator {

// After so many commands from now on every call fails, as on a device that is lost; negative: none
// fails. Null where kernels are not emulated.
[[gnu::weak]] void lose_device(int64_t after_commands);

}  // namespace sft::cuda::emulator
