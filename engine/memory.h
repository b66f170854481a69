// How much memory there is for us, and how much of it we have.
#pragma once

#include <cstdint>

namespace sft {

// Bytes that can be taken without swapping: what the system calls available, within the limit of
// our control group, if it has one.
int64_t available_memory();

// Bytes of this process in memory, pages of mapped files included: now, and the most so far.
int64_t resident_memory();
int64_t peak_memory();

// What comes on top once work begins, whatever the model: kernels that oneDNN compiles, threads and
// their stacks, a tape (14 to 16 MiB for models of 3 to 12 million parameters).
constexpr int64_t kWorkBytes = int64_t{14} << 20;

}  // namespace sft
