// Every op by its spec (tests/ops/). Only some: tests -tc='op*' -sc='layer_norm*'
// On other random numbers: SFT_TEST_SEED=N tests -tc='ops*'
#include <fmt/format.h>

#include <cstdlib>

#include "engine/cpu/isa.h"
#include "engine/cpu/narrow.h"
#include "engine/cuda/emulator/counts.h"
#include "tests/doctest.h"
#include "tests/op_spec.h"

using namespace sft;

namespace {

void check_cases(const OpSpec& spec, Where where, std::string_view on) {
  const char* given = std::getenv("SFT_TEST_SEED");
  const uint64_t seed = given ? std::strtoull(given, nullptr, 10) : kSpecSeed;
  for (size_t i = 0; i < spec.cases.size(); ++i) {
    if (spec.cases[i].bench) continue;
    for (const std::string& wrong : check_case(spec, spec.cases[i], seed, where))
      EXPECT_MESSAGE(false,
                     fmt::format("{} case {} seed {} ({}): {}", spec.name, i, seed, on, wrong));
    EXPECT(true);
  }
}

}  // namespace

TEST_CASE("ops: every spec, every case") {
  for (const OpSpec& spec : op_specs())
    SUBCASE(spec.name.c_str()) check_cases(spec, {}, cpu::isa());
}

TEST_CASE("ops in 16 bits: every spec with such products, on the CPU") {
  for (const Math math : {Math::fast16, Math::bf16}) {
    if (!cpu::narrow::available(math)) return test::skip("needs AVX-512 with VNNI and BF16");
    for (const OpSpec& spec : op_specs())
      if (!spec.narrow.empty())
        SUBCASE(spec.name.c_str()) check_cases(spec, {Device::cpu, math}, name(math));
  }
}

TEST_CASE("ops on cuda: every spec, every case, in f32 and bf16") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  for (const OpSpec& spec : op_specs()) {
    if (!spec.cuda) continue;
    SUBCASE(spec.name.c_str()) {
      check_cases(spec, {Device::cuda, Math::exact}, "cuda f32");
      check_cases(spec, {Device::cuda, Math::bf16}, "cuda bf16");
    }
  }
}

// At the sizes of sft-bench; emulated, where those would take hours, at the first one of each spec.
TEST_CASE("pairs on cuda: what the CPU computes, in f32 and bf16") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  const bool emulated = cuda::emulator::launches;
  for (const OpSpec& spec : op_specs()) {
    if (!spec.cuda) continue;
    SUBCASE(spec.name.c_str()) {
      for (const Case& c : spec.cases) {
        if (emulated ? &c != &spec.cases[0] : !c.bench) continue;
        for (Math math : {Math::exact, Math::bf16})
          for (const std::string& wrong : check_pair(spec, c, kSpecSeed, math))
            EXPECT_MESSAGE(false, fmt::format("{} {}: {}", spec.name, name(math), wrong));
        EXPECT(true);
      }
    }
  }
}
