// How much memory there is for us.
#pragma once

#include <cstdint>

namespace sft {

// Bytes that can be taken without swapping: what the system calls available, within the limit of
// our control group, if it has one.
int64_t available_memory();

}  // namespace sft
