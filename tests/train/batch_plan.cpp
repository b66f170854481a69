#include "train/batch_plan.h"

#include <algorithm>
#include <set>

#include "tests/doctest.h"

using namespace sft;

namespace {

std::vector<int64_t> lengths(uint32_t n) {
  std::vector<int64_t> samples;
  for (uint32_t i = 0; i < n; ++i) samples.push_back(16000 + (i * 7919 % n) * 160);
  return samples;
}

}  // namespace

TEST_CASE("batch plan: neighbours in length, every utterance once an epoch") {
  const std::vector<int64_t> samples = lengths(50);
  const BatchPlan plan(samples, {.utterances = 16}, 3);
  REQUIRE(plan.batches_per_epoch() == 4);
  EXPECT(plan.groups()[3].size() == 2);
  for (const Batch& group : plan.groups())
    EXPECT(std::is_sorted(group.begin(), group.end(),
                          [&](uint32_t a, uint32_t b) { return samples[a] > samples[b]; }));
  EXPECT(samples[plan.groups()[0].back()] > samples[plan.groups()[1].front()]);
  for (int64_t epoch : {0, 5}) {
    std::set<uint32_t> seen;
    for (int64_t k = 0; k < 4; ++k)
      for (uint32_t u : plan.batch(epoch, k)) EXPECT(seen.insert(u).second);
    EXPECT(seen.size() == 50);
  }
}

TEST_CASE("batch plan: the order is that of the definition") {
  // Fisher-Yates with Philox4x32-7, key 42, counter (draw / 4, 0, epoch, fnv1a("shuffle")),
  // computed in numpy from the definition in docs/contract.md 6.
  const std::vector<int64_t> samples(8, 16000);
  const BatchPlan plan(samples, {.utterances = 1}, 42);
  const auto order = [&](int64_t epoch) {
    std::vector<uint32_t> first;
    for (int64_t k = 0; k < 8; ++k) first.push_back(plan.batch(epoch, k).front());
    return first;
  };
  EXPECT(order(0) == std::vector<uint32_t>{1, 4, 2, 6, 7, 3, 5, 0});
  EXPECT(order(1) == std::vector<uint32_t>{1, 2, 3, 7, 4, 0, 5, 6});
}

TEST_CASE("batch plan: any update can be asked for, in any order, by anyone") {
  const std::vector<int64_t> samples = lengths(37);
  const BatchPlan one(samples, {.utterances = 4}, 7), other(samples, {.utterances = 4}, 7);
  std::vector<Batch> forward;
  for (int64_t b = 0; b < 40; ++b) forward.push_back(one.batch(b));
  for (int64_t b = 39; b >= 0; --b) EXPECT(other.batch(b) == forward[b]);
  EXPECT(one.epoch_of(39) == 3);
  const BatchPlan reseeded(samples, {.utterances = 4}, 8);
  int same = 0;
  for (int64_t b = 0; b < 40; ++b) same += reseeded.batch(b) == forward[b];
  EXPECT(same < 20);
}

TEST_CASE("batch plan: by seconds of audio") {
  const std::vector<int64_t> samples = {16000, 48000, 32000, 160000, 16000};
  const BatchPlan plan(samples, {.utterances = 0, .seconds = 4}, 0);
  EXPECT(plan.groups() == std::vector<Batch>{{3}, {1}, {2, 0, 4}});
  const auto both = [&] { BatchPlan(samples, {.utterances = 16, .seconds = 4}, 0); };
  EXPECT(test::error_of(both).message ==
         "batch.utterances is 16, batch.seconds is 4 (expected one of them)");
  EXPECT(test::error_of([&] { BatchPlan(samples, {.utterances = 0}, 0); }).kind == Kind::usage);
}

TEST_CASE("batch plan: micro-batches change the sum of nothing") {
  const Batch batch = {9, 3, 5, 7, 1};
  const std::vector<int64_t> frames = {0, 10, 0, 20, 0, 30, 0, 40, 0, 100};
  EXPECT(micro_batches(batch, frames, 60) == std::vector<Batch>{{9}, {3, 5}, {7, 1}});
  EXPECT(micro_batches({}, frames, 60).empty());
}
