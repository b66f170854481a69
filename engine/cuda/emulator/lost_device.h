// Lets tests lose the device, or its memory, where kernels are emulated.
#pragma once

#include <cstdint>

namespace sft::cuda::emulator {

// After so many commands from now on every call fails, as on a device that is lost; negative: none
// fails. Null where kernels are not emulated.
[[gnu::weak]] void lose_device(int64_t after_commands);
// What is said to be free of the device's memory from now on; negative: 4 GiB, as ever.
[[gnu::weak]] void free_bytes_are(int64_t bytes);

}  // namespace sft::cuda::emulator
