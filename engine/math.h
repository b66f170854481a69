// The arithmetic that a run asks for (--math); never picked by a timing.
//
//   exact   f32 products
//   fast16  products of int16 block fixed point (engine/cpu/narrow.h); CPU
//   bf16    products of bf16, summed in f32; on a device activations are bf16 as well
//
// Norms, statistics, losses, sums and gradients of parameters are f32 in each.
#pragma once

#include <cstdint>
#include <string_view>

namespace sft {

enum class Math : uint8_t { exact, fast16, bf16 };

constexpr std::string_view name(Math math) {
  return math == Math::exact ? "exact" : math == Math::fast16 ? "fast16" : "bf16";
}

// Kind::usage for any other text.
Math math_named(std::string_view text);

}  // namespace sft
