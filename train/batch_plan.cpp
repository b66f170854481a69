#include "train/batch_plan.h"

#include <algorithm>
#include <numeric>

#include "engine/check.h"
#include "engine/rng.h"

namespace sft {

namespace {

Batch longest_first(std::span<const int64_t> samples) {
  Batch order(samples.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](uint32_t a, uint32_t b) { return samples[a] > samples[b]; });
  return order;
}

void shuffle(std::vector<uint32_t>& order, uint64_t seed, int64_t epoch) {
  std::iota(order.begin(), order.end(), 0);
  Draws draws(seed, 0, static_cast<uint32_t>(epoch), fnv1a("shuffle"));
  for (auto i = static_cast<uint32_t>(order.size()); i-- > 1;)
    std::swap(order[i], order[draws.below(i + 1)]);
}

}  // namespace

BatchPlan::BatchPlan(std::span<const int64_t> samples, const BatchConfig& config, uint64_t seed)
    : seed_(seed) {
  CHECK(!samples.empty(), "batch plan: there are no utterances");
  if ((config.utterances > 0) == (config.seconds > 0))
    fail(Kind::usage, "batch.utterances is {}, batch.seconds is {} (expected one of them)",
         config.utterances, config.seconds);
  const double budget = config.seconds * 16000;  // samples
  double filled = 0;
  for (uint32_t u : longest_first(samples)) {
    const auto length = static_cast<double>(samples[u]);
    const bool full =
        groups_.empty() ||
        (config.utterances > 0 ? static_cast<int>(groups_.back().size()) == config.utterances
                               : filled + length > budget);
    if (full) groups_.emplace_back(), filled = 0;
    groups_.back().push_back(u);
    filled += length;
  }
}

const Batch& BatchPlan::batch(int64_t epoch, int64_t k) const {
  CHECK(epoch >= 0 && k >= 0 && k < batches_per_epoch(), "batch {} of epoch {}: there are {}", k,
        epoch, batches_per_epoch());
  if (epoch != epoch_) {
    order_.resize(groups_.size());
    shuffle(order_, seed_, epoch);
    epoch_ = epoch;
  }
  return groups_[order_[static_cast<size_t>(k)]];
}

const Batch& BatchPlan::batch(int64_t b) const {
  return batch(epoch_of(b), b % batches_per_epoch());
}

std::vector<Batch> micro_batches(const Batch& batch, std::span<const int64_t> frames,
                                 int64_t budget) {
  std::vector<Batch> pieces;
  int64_t filled = 0;
  for (uint32_t u : batch) {
    if (pieces.empty() || filled + frames[u] > budget) pieces.emplace_back(), filled = 0;
    pieces.back().push_back(u);
    filled += frames[u];
  }
  return pieces;
}

}  // namespace sft
