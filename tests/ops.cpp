// Every op by its spec (tests/ops/). Only some: tests -tc='op*' -sc='layer_norm*'
#include <fmt/format.h>

#include <chrono>

#include "engine/cpu/isa.h"
#include "tests/doctest.h"
#include "tests/op_spec.h"

using namespace sft;

TEST_CASE("ops: every spec, every case") {
  const auto seed =
      static_cast<uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
  for (const OpSpec& spec : op_specs()) {
    SUBCASE(spec.name.c_str()) {
      for (size_t i = 0; i < spec.cases.size(); ++i) {
        if (spec.cases[i].bench) continue;
        for (const std::string& wrong : check_case(spec, spec.cases[i], seed))
          EXPECT_MESSAGE(false, fmt::format("{} case {} seed {} ({}): {}", spec.name, i, seed,
                                            cpu::isa(), wrong));
        EXPECT(true);
      }
    }
  }
}
