#include "bench/mix.h"

#include <algorithm>
#include <numeric>

#include "tests/doctest.h"

using namespace sft;

namespace {

double seconds(const std::vector<int32_t>& samples) {
  return static_cast<double>(std::accumulate(samples.begin(), samples.end(), int64_t{0})) / 16000;
}

}  // namespace

TEST_CASE("mix: lengths of one kind, of the list, and as a corpus has them") {
  EXPECT(mix_samples("fixed:5", 2) == std::vector<int32_t>{80000, 80000});
  EXPECT(seconds(mix_samples("mixed", 8)) == 75);
  const std::vector<int32_t> two = mix_samples("ted3", 2);  // at a quarter and three quarters
  EXPECT(two == std::vector<int32_t>{59200, 132800});
  const std::vector<int32_t> one = mix_samples("ls-test", 1);  // the median
  EXPECT(one == std::vector<int32_t>{92800});
  EXPECT(mix_samples("kw", 3) == std::vector<int32_t>{16000, 16000, 16000});
}

TEST_CASE("mix: means of the corpora, in seconds") {
  for (const auto& [name, mean] : {std::pair{"ls-train", 12.7}, {"ted3", 6.2}, {"ls-test", 7.6}})
    EXPECT(seconds(mix_samples(name, 1000)) / 1000 == doctest::Approx(mean).epsilon(0.03));
}

TEST_CASE("mix: a group of the recipe is 16 neighbours with about 16 means of audio") {
  const std::vector<int32_t> group = mix_samples("official:ted3", 16);
  REQUIRE(group.size() == 16);
  EXPECT(std::ranges::is_sorted(group));
  EXPECT(group.back() - group.front() < 16000);
  EXPECT(seconds(group) == doctest::Approx(16 * 6.2).epsilon(0.1));
  EXPECT(usual_batch("official:ted3", false) == 16);
}

TEST_CASE("mix: so much audio; names that are none") {
  EXPECT(batch_of("fixed:5", 21) == 4);
  EXPECT(batch_of("fixed:5", 0.1) == 1);
  EXPECT(seconds(mix_samples("ls-train", batch_of("ls-train", 480))) ==
         doctest::Approx(480).epsilon(0.03));
  for (const char* name : {"fixed:5", "mixed", "ls-train", "kw", "official:ls-test"})
    EXPECT_MESSAGE(is_mix(name), name);
  for (const char* name : {"", "fixed:", "fixed:0", "fixed:601", "fixed:5s", "ted",
                           "official:", "official:mixed", "official:fixed:5"})
    EXPECT_MESSAGE(!is_mix(name), name);
}
