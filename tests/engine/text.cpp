#include "engine/nearest.h"
#include "engine/utf8.h"
#include "tests/doctest.h"

using namespace sft;

TEST_CASE("nearest: a slip finds its name, another word finds none") {
  const std::vector<std::string> names = {"--alpha", "--output", "--threads", "--seed"};
  EXPECT(nearest_name("--aplha", names) == "--alpha");
  EXPECT(nearest_name("--outputs", names) == "--output");
  EXPECT(nearest_name("--thread", names) == "--threads");
  EXPECT(nearest_name("--verbose", names) == "");
  EXPECT(nearest_name("--alpha", {}) == "");
  EXPECT(did_you_mean("--sed", names) == "did you mean --seed?");
}

TEST_CASE("utf8: characters, and what is none") {
  EXPECT(utf8_characters("a\xc3\xa9\xff") == std::vector<std::string>{"a", "\xc3\xa9", "\xff"});
  EXPECT(is_utf8("na\xc3\xafve"));
  EXPECT(!is_utf8("na\xefve"));
  EXPECT(!is_utf8("\xed\xa0\x80"));  // a surrogate
}
