#include "models/wavlm.h"

#include "tests/doctest.h"
#include "tests/golden.h"
#include "tests/golden_signal.h"

using namespace sft;

namespace {

// Of a distance within or beyond the list's reach, as attention reads its table.
int32_t bucket(const std::vector<int32_t>& buckets, int64_t distance) {
  const auto reach = static_cast<int64_t>(buckets.size()) / 2;
  return buckets[reach + std::clamp(distance, -reach, reach)];
}

}  // namespace

TEST_CASE("wavlm: buckets of distances are those of transformers' own function") {
  const std::pair<const char*, std::vector<int32_t>> models[] = {
      {"wavlm-group.safetensors", relative_buckets(320, 800)},
      {"wavlm-layer.safetensors", relative_buckets(32, 50)}};
  for (const auto& [file, ours] : models) {
    const std::vector<int32_t> theirs = test::GoldenFile(file).integers("buckets");
    const auto reach = static_cast<int64_t>(theirs.size()) / 2;
    REQUIRE(reach == 1000);
    for (int64_t distance = -reach; distance <= reach; ++distance)
      REQUIRE(bucket(ours, distance) == theirs[reach + distance]);
  }
}

TEST_CASE("wavlm: buckets, by hand") {
  const std::vector<int32_t> buckets = relative_buckets(320, 800);
  REQUIRE(buckets.size() == 1601);
  const std::pair<int64_t, int32_t> expected[] = {
      {0, 0},    {1, 161},   {-1, 1},    {79, 239},  {-79, 79},   {80, 240},  {-80, 80},
      {83, 241}, {100, 247}, {-100, 87}, {400, 295}, {-799, 159}, {800, 319}, {5000, 319}};
  for (const auto& [distance, want] : expected) EXPECT(bucket(buckets, distance) == want);
  EXPECT(std::count(buckets.begin(), buckets.end(), 160) == 0);
}
