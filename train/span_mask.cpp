#include "train/span_mask.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/check.h"

namespace sft {
namespace {

int32_t span_count(int32_t frames, double prob, int32_t length, int32_t min_masks, double u) {
  return std::max(min_masks, static_cast<int32_t>(prob * frames / length + u));
}

}  // namespace

int32_t most_masked(int32_t frames, double prob, int32_t length, int32_t min_masks) {
  return std::min(frames, length * span_count(frames, prob, length, min_masks, 1));
}

std::vector<int32_t> span_mask(int32_t frames, double prob, int32_t length, int32_t min_masks,
                               Draws& draws) {
  CHECK(frames >= 0 && prob >= 0 && prob <= 1 && length >= 1 && min_masks >= 0,
        "span_mask: {} frames, probability {}, length {}, at least {}", frames, prob, length,
        min_masks);
  const int32_t spans = span_count(frames, prob, length, min_masks, draws.uniform());
  const int32_t possible = frames - length > spans ? frames - length : spans + 1;
  std::vector<int32_t> starts(possible);
  std::iota(starts.begin(), starts.end(), 0);
  std::vector<bool> masked(frames);
  for (int32_t i = 0; i < spans; ++i) {
    std::swap(starts[i], starts[i + draws.below(possible - i)]);
    const int32_t end = std::min(frames, starts[i] + length);
    for (int32_t t = starts[i]; t < end; ++t) masked[t] = true;
  }
  std::vector<int32_t> rows;
  for (int32_t t = 0; t < frames; ++t)
    if (masked[t]) rows.push_back(t);
  return rows;
}

}  // namespace sft
