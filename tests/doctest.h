// doctest without its short macros (its CHECK would collide with engine/check.h), under the few
// names our tests use.
#pragma once

#define DOCTEST_CONFIG_NO_SHORT_MACRO_NAMES
#define DOCTEST_CONFIG_SUPER_FAST_ASSERTS
#include <doctest/doctest.h>

#include "engine/check.h"

#define TEST_CASE(name) DOCTEST_TEST_CASE(name)
#define SUBCASE(name) DOCTEST_SUBCASE(name)
#define EXPECT(...) DOCTEST_CHECK(__VA_ARGS__)
#define REQUIRE(...) DOCTEST_REQUIRE(__VA_ARGS__)
#define EXPECT_MESSAGE(condition, ...) DOCTEST_CHECK_MESSAGE(condition, __VA_ARGS__)
#define INFO(...) DOCTEST_INFO(__VA_ARGS__)

namespace sft::test {

// Runs f and returns the Error it must throw.
template <class F>
Error error_of(F&& f) {
  try {
    f();
  } catch (const Error& e) {
    return e;
  }
  DOCTEST_FAIL("no sft::Error was thrown");
  return Error(Kind::internal, "", "");
}

// Says that this case could not run here, and why; counted by main as skipped, not as passed.
void skip(std::string_view why);

}  // namespace sft::test
