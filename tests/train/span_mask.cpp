#include "train/span_mask.h"

#include <algorithm>
#include <cmath>
#include <set>

#include "tests/doctest.h"

using namespace sft;

namespace {

Draws draws(uint32_t utterance) { return {7, utterance, 3, fnv1a("mask_spans")}; }

std::vector<int32_t> mask(int32_t frames, double prob, uint32_t utterance, int32_t min_masks = 2) {
  Draws from = draws(utterance);
  return span_mask(frames, prob, 10, min_masks, from);
}

}  // namespace

TEST_CASE("span_mask: the frames that the documented draws give") {
  for (const int32_t frames : {1, 5, 12, 13, 40, 499}) {
    Draws from = draws(9);
    const double u = from.uniform();
    const int spans = std::max(2, static_cast<int>(std::floor(0.65 * frames / 10 + u)));
    const int possible = frames - 10 > spans ? frames - 10 : spans + 1;
    std::vector<int> left;
    for (int s = 0; s < possible; ++s) left.push_back(s);
    std::set<int32_t> expected;
    for (int i = 0; i < spans; ++i) {
      const size_t j = i + from.below(possible - i);
      std::swap(left[i], left[j]);
      for (int t = left[i]; t < std::min(left[i] + 10, frames); ++t) expected.insert(t);
    }
    EXPECT(mask(frames, 0.65, 9) == std::vector<int32_t>(expected.begin(), expected.end()));
  }
}

TEST_CASE("span_mask: coverage of 500 frames, and never the last one") {
  for (const auto& [prob, coverage] : {std::pair{0.65, 0.49}, {0.80, 0.57}}) {
    double masked = 0;
    bool last = false;
    for (uint32_t utterance = 0; utterance < 400; ++utterance) {
      const std::vector<int32_t> rows = mask(500, prob, utterance);
      EXPECT(std::is_sorted(rows.begin(), rows.end()));
      masked += static_cast<double>(rows.size());
      last = last || rows.back() == 499;
    }
    EXPECT(std::abs(masked / (400 * 500) - coverage) < 0.01);
    EXPECT(!last);
  }
}

TEST_CASE("span_mask: no draws mask more than the plan of memory counts on") {
  for (const int32_t frames : {0, 1, 12, 25, 40, 499})
    for (uint32_t utterance = 0; utterance < 100; ++utterance)
      EXPECT(mask(frames, 0.3, utterance).size() <=
             static_cast<size_t>(most_masked(frames, 0.3, 10, 2)));
  EXPECT(most_masked(499, 0.3, 10, 2) == 150);
  EXPECT(most_masked(12, 0.3, 10, 2) == 12);
}

TEST_CASE("span_mask: few frames") {
  EXPECT(mask(0, 0.8, 1).empty());
  bool last = false;
  for (uint32_t utterance = 0; utterance < 50; ++utterance) {
    // Two of three starts: at least frames 1 to 9 of twelve.
    const std::vector<int32_t> rows = mask(12, 0.8, utterance);
    EXPECT(rows.size() >= 11);
    last = last || rows.back() == 11;
    EXPECT(mask(1, 0.8, utterance).size() <= 1);
  }
  EXPECT(last);
  EXPECT(mask(500, 0, 1, 0).empty());
}

TEST_CASE("span_mask: every start is as likely as another") {
  std::vector<int> count(40);
  for (uint32_t utterance = 0; utterance < 4000; ++utterance) {
    Draws from = draws(utterance);
    for (int32_t t : span_mask(41, 0, 1, 1, from)) ++count[t];
  }
  for (int c : count) EXPECT(std::abs(c - 100) < 50);  // five standard deviations of 4000 / 40
}
