#include "engine/cpu/isa.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/engine/isa.cpp"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {
size_t vector_bytes() { return hwy::HWY_NAMESPACE::Lanes(hwy::HWY_NAMESPACE::ScalableTag<char>()); }
}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <cstdlib>
#include <string>

#include "tests/doctest.h"

namespace sft {
HWY_EXPORT(vector_bytes);

// highway, when it is asked, chooses kernels of all that the machine has, whatever is disabled.
TEST_CASE("isa: asking which one it is leaves the kernels as SFT_ISA has them") {
  const std::string before(cpu::isa());
  const auto choose = [](const std::string& name) {
    setenv("SFT_ISA", name.c_str(), 1);
    cpu::choose_isa();
  };
  size_t bytes = 0;
  for (const char* name : {"scalar", "avx2", "avx512"}) {
    try {
      choose(name);
    } catch (const Error&) {
      break;  // not on this CPU
    }
    const size_t chosen = HWY_DYNAMIC_DISPATCH(vector_bytes)();
    EXPECT(chosen > bytes);
    EXPECT(cpu::isa() == name);
    EXPECT(HWY_DYNAMIC_DISPATCH(vector_bytes)() == chosen);
    bytes = chosen;
  }
  choose(before);
}

}  // namespace sft
#endif
