// Which instruction set the kernels use: the best one of the machine, or what the environment
// variable SFT_ISA asks for: scalar (SSE2, the baseline), avx2, avx512.
#pragma once

#include <string_view>

namespace sft::cpu {

// Applies SFT_ISA; called once, before the first kernel. Unknown or missing on this CPU:
// Kind::usage.
void choose_isa();
std::string_view isa();  // "scalar", "avx2" or "avx512"

}  // namespace sft::cpu
