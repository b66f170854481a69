// doctest itself and what goes with it, once for every program that links the op specs: some stand
// beside test cases.
#define DOCTEST_CONFIG_IMPLEMENT
#include "tests/doctest.h"

#include <fmt/format.h>

#include "tests/skipped.h"

namespace sft::test {

std::set<std::string>& skipped_cases() {
  static std::set<std::string> cases;
  return cases;
}

void skip(std::string_view why) {
  const std::string name = doctest::getContextOptions()->currentTest->m_name;
  fmt::print("skipped: {}: {}\n", name, why);
  skipped_cases().insert(name);
}

}  // namespace sft::test
