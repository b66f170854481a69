// How a packed batch is laid out: B utterances end to end along dimension 0, nothing padded.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace sft {

// Frames of B utterances: utterance b has rows [starts[b], starts[b + 1]).
struct Segments {
  std::span<const int32_t> starts;      // [B + 1] cu_seqlens
  std::span<const int32_t> utterances;  // [B] index in the manifest: random numbers depend on it

  int32_t batch() const { return static_cast<int32_t>(utterances.size()); }
  int32_t total() const { return starts.empty() ? 0 : starts.back(); }
  int32_t length(int b) const { return starts[b + 1] - starts[b]; }
  int32_t longest() const;
};

// Samples, or rows of one convolution stage: utterance b has rows [starts[b], starts[b] + valid[b])
// of a slot that ends at starts[b + 1]. Starts are multiples of the stride that is still to come,
// so that a convolution is one dense pass over all slots; rows between slots are finite, never read
// by a valid row, and have zero gradient.
struct Slots {
  std::span<const int32_t> starts;  // [B + 1]
  std::span<const int32_t> valid;   // [B]

  int32_t batch() const { return static_cast<int32_t>(valid.size()); }
  int32_t rows() const { return starts.empty() ? 0 : starts.back(); }
};

// Owns the numbers of Slots; the views stay good as long as it lives and is not assigned to.
class SlotList {
 public:
  SlotList() = default;
  // Waves of so many samples, each in a slot of whole hops: hop * ceil(samples / hop).
  SlotList(std::span<const int32_t> samples, int32_t hop) { assign(samples, hop); }
  void assign(std::span<const int32_t> samples, int32_t hop);
  // The rows of a convolution over `in`: starts / stride, floor((valid - kernel) / stride) + 1
  // valid rows (none if valid < kernel). Starts that are no multiples of the stride: CHECK.
  void assign_next(const SlotList& in, int32_t kernel, int32_t stride);
  SlotList next(int32_t kernel, int32_t stride) const;
  Slots view() const { return {starts_, valid_}; }

 private:
  std::vector<int32_t> starts_, valid_;
};

// Owns the numbers of Segments; the views stay good as long as it lives and is not assigned to.
class SegmentList {
 public:
  SegmentList() = default;
  explicit SegmentList(std::span<const int32_t> lengths);  // utterances are 0, 1, ...
  SegmentList(std::span<const int32_t> lengths, std::span<const int32_t> utterances);
  Segments view() const { return {starts_, utterances_}; }

 private:
  std::vector<int32_t> starts_, utterances_;
};

}  // namespace sft
