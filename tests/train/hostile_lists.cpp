// What tests/fuzz/lists.cpp runs, here on some thousand mutations of good files, so that every
// machine does it.
#include "engine/rng.h"
#include "tests/doctest.h"

#define LLVMFuzzerTestOneInput fuzz_lists
#include "tests/fuzz/lists.cpp"
#undef LLVMFuzzerTestOneInput

using namespace sft;

TEST_CASE("lists: mutated manifests, trn and STM files end in an input error or are read") {
  const std::string files[] = {
      "id\tpath\tseconds\tstart\tend\ttext\na\ta.wav\t1.5\t0\t1.5\tIT'S\nb\tb.wav\t2\t-\t-\t-\n",
      "THE CAT (u-1)\n;; comment\n(u-2)\n",
      "talk 1 speaker 0.5 1.25 <o,f0,male> it 's well-known (2)\ntalk 1 speaker 2 3 <NA> a\n"};
  const std::string bytes = std::string("\0\t\n\r -.'()<>;{}@9\xff\xc3\xa9\xef\xbb\xbf|eE", 26);
  Draws draws(1, 0, 0, fnv1a("lists"));
  for (int i = 0; i < 6000; ++i) {
    std::string text = files[i % 3];
    for (uint32_t n = 1 + draws.below(4); n-- > 0;) {
      const uint32_t at = draws.below(static_cast<uint32_t>(text.size()));
      const char byte = bytes[draws.below(static_cast<uint32_t>(bytes.size()))];
      if (draws.below(2))
        text[at] = byte;
      else
        text.insert(at, draws.below(3), byte);
      if (draws.below(8) == 0) text.erase(at, draws.below(5));
      if (text.empty()) text = " ";
    }
    INFO(text);
    fuzz_lists(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  }
}
