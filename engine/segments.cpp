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

SlotList::SlotList(std::span<const int32_t> samples, int32_t hop)
    : starts_(1, 0), valid_(samples.begin(), samples.end()) {
  CHECK(hop > 0, "slots: hop is {}", hop);
  for (const int32_t n : samples) starts_.push_back(starts_.back() + (n + hop - 1) / hop * hop);
}

SlotList SlotList::next(int32_t kernel, int32_t stride) const {
  CHECK(stride > 0 && kernel >= stride, "slots: kernel {}, stride {}", kernel, stride);
  SlotList out;
  for (const int32_t start : starts_) {
    CHECK(start % stride == 0, "slots: start {} is no multiple of the stride {}", start, stride);
    out.starts_.push_back(start / stride);
  }
  for (const int32_t n : valid_) out.valid_.push_back(n < kernel ? 0 : (n - kernel) / stride + 1);
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
