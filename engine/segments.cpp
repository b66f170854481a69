#include "engine/segments.h"

#include <algorithm>
#include <numeric>

#include "engine/check.h"

namespace sft {

int32_t Segments::longest() const {
  int32_t longest = 0;
  for (int b = 0; b < batch(); ++b) longest = std::max(longest, length(b));
  return longest;
}

void SlotList::assign(std::span<const int32_t> samples, int32_t hop) {
  CHECK(hop > 0, "slots: hop is {}", hop);
  starts_.assign(1, 0);
  valid_.assign(samples.begin(), samples.end());
  for (const int32_t n : samples) starts_.push_back(starts_.back() + (n + hop - 1) / hop * hop);
}

void SlotList::assign_next(const SlotList& in, int32_t kernel, int32_t stride) {
  CHECK(stride > 0 && kernel >= stride, "slots: kernel {}, stride {}", kernel, stride);
  starts_.clear(), valid_.clear();
  for (const int32_t start : in.starts_) {
    CHECK(start % stride == 0, "slots: start {} is no multiple of the stride {}", start, stride);
    starts_.push_back(start / stride);
  }
  for (const int32_t n : in.valid_) valid_.push_back(n < kernel ? 0 : (n - kernel) / stride + 1);
}

SlotList SlotList::next(int32_t kernel, int32_t stride) const {
  SlotList out;
  out.assign_next(*this, kernel, stride);
  return out;
}

SegmentList::SegmentList(std::span<const int32_t> lengths)
    : starts_(lengths.size() + 1), utterances_(lengths.size()) {
  std::partial_sum(lengths.begin(), lengths.end(), starts_.begin() + 1);
  std::iota(utterances_.begin(), utterances_.end(), 0);
}

SegmentList::SegmentList(std::span<const int32_t> lengths, std::span<const int32_t> utterances)
    : SegmentList(lengths) {
  utterances_.assign(utterances.begin(), utterances.end());
}

}  // namespace sft
