#include "bench/yardstick.h"

#include <cmath>

namespace sft {

double disagreement(const Array& ours, const Array& theirs) {
  const int64_t C = ours.shape.back();
  CHECK(theirs.shape.back() == C && theirs.shape[0] <= ours.shape[0],
        "a yardstick's output is {}, the op's {}", theirs.shape, ours.shape);
  double difference = 0, norm = 0;
  for (int64_t t = 0; t < theirs.shape[0]; ++t) {
    bool empty = true;
    for (int64_t c = 0; c < C; ++c) empty = empty && ours.at(t, c) == 0;
    for (int64_t c = 0; c < C && !empty; ++c) {
      difference += std::pow(ours.at(t, c) - theirs.at(t, c), 2);
      norm += std::pow(theirs.at(t, c), 2);
    }
  }
  return std::sqrt(difference / norm);  // NaN if there is nothing to compare
}

double allowed_disagreement(Dtype compute) { return compute == Dtype::bf16 ? 2e-2 : 2e-3; }

}  // namespace sft
