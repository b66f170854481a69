#include "engine/segments.h"

#include <algorithm>
#include <numeric>

namespace sft {

int32_t Segments::longest() const {
  int32_t longest = 0;
  for (int b = 0; b < batch(); ++b) longest = std::max(longest, length(b));
  return longest;
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
