#include "engine/cpu/isa.h"

#include <hwy/highway.h>
#include <hwy/targets.h>

#include <cstdlib>
#include <string>

#include "engine/check.h"

namespace sft::cpu {
namespace {

// hwy::SupportedTargets() chooses the kernels of all that the machine has, also of what is
// disabled, so it is asked once, and they are chosen anew.
std::string_view settle() {
  const int64_t supported = hwy::SupportedTargets();
  hwy::GetChosenTarget().Update(supported);
  return supported & HWY_AVX3 ? "avx512" : supported & HWY_AVX2 ? "avx2" : "scalar";
}

std::string_view& current() {
  static std::string_view isa = settle();
  return isa;
}

}  // namespace

void choose_isa() {
  const char* wanted = std::getenv("SFT_ISA");
  if (!wanted || !*wanted) return;
  const std::string name = wanted;
  hwy::DisableTargets(0);
  const int64_t supported = hwy::SupportedTargets();
  const int64_t avx512 = HWY_AVX3 | HWY_AVX3_DL;
  if (name == "scalar") {
    hwy::DisableTargets(avx512 | HWY_AVX2 | HWY_SSE4 | HWY_SSSE3);
  } else if (name == "avx2" && (supported & HWY_AVX2)) {
    hwy::DisableTargets(avx512);
  } else if (name != "avx512" || !(supported & HWY_AVX3)) {
    fail(Kind::usage, Hint{"SFT_ISA may be scalar, avx2 or avx512"},
         "SFT_ISA={}: unknown, or not on this CPU", printable(name));
  }
  current() = settle();
}

std::string_view isa() { return current(); }

}  // namespace sft::cpu
