// Which utterances make which update: a pure function of (lengths, config, seed, epoch), so that
// a resumed run, another device and another number of ranks see the same batches
// (docs/contract.md 7).
//
// Utterances are sorted by length, longest first (ties: as in the manifest), and cut into groups
// of neighbours. Groups stay as they are for the whole run; every epoch takes them in another
// order: Fisher-Yates from the last element down, site `shuffle`, the epoch in place of the update.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace sft {

// Exactly one is set.
struct BatchConfig {
  int utterances = 16;  // of each group; the last may be smaller
  double seconds = 0;   // most audio of a group; a longer utterance is a group of its own
};

using Batch = std::vector<uint32_t>;  // positions in the list of lengths

class BatchPlan {
 public:
  // `samples` [utterances] at 16 kHz; Kind::usage if the config has both sizes or none.
  BatchPlan(std::span<const int64_t> samples, const BatchConfig& config, uint64_t seed);

  int64_t batches_per_epoch() const { return static_cast<int64_t>(groups_.size()); }
  // Longest first: the order for evaluation.
  const std::vector<Batch>& groups() const { return groups_; }

  // Batch `k` of `epoch`.
  const Batch& batch(int64_t epoch, int64_t k) const;
  // Batch number `b` counted over all epochs: with accumulation A, update u takes the batches
  // u * A ... u * A + A - 1.
  const Batch& batch(int64_t b) const;
  // Which of groups() it is.
  size_t group(int64_t b) const { return static_cast<size_t>(&batch(b) - groups_.data()); }
  int64_t epoch_of(int64_t b) const { return b / batches_per_epoch(); }

 private:
  std::vector<Batch> groups_;
  uint64_t seed_;
  mutable int64_t epoch_ = -1;           // of order_
  mutable std::vector<uint32_t> order_;  // groups in this epoch
};

// `batch` in pieces whose frames stay within `budget`; an utterance longer than it stands alone.
// `frames` by position, as in Batch.
std::vector<Batch> micro_batches(const Batch& batch, std::span<const int64_t> frames,
                                 int64_t budget);

}  // namespace sft
