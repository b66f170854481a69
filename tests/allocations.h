// Counts calls of operator new by this thread from our own code: those of libraries come from
// outside the program.
#pragma once

#include <cstdint>

namespace sft::test {

void count_allocations(bool on);  // from zero
int64_t allocations();

}  // namespace sft::test
