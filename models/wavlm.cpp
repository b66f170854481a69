#include "models/wavlm.h"

#include <algorithm>
#include <cmath>

namespace sft {

std::vector<int32_t> relative_buckets(int64_t buckets, int64_t max_distance) {
  const int64_t half = buckets / 2, exact = half / 2;
  const auto widest =
      static_cast<float>(std::log(static_cast<double>(max_distance) / static_cast<double>(exact)));
  std::vector<int32_t> list;
  for (int64_t distance = -max_distance; distance <= max_distance; ++distance) {
    int64_t bucket = std::abs(distance);
    if (bucket >= exact) {
      const float share = std::log(static_cast<float>(bucket) / static_cast<float>(exact)) / widest;
      const float wide = static_cast<float>(exact) + share * static_cast<float>(half - exact);
      bucket = std::min(half - 1, static_cast<int64_t>(wide));
    }
    list.push_back(static_cast<int32_t>(bucket + (distance > 0 ? half : 0)));
  }
  return list;
}

RelativeGate::RelativeGate(const Config& config)
    : weight{{8, config.head_width()}}, bias{{8}}, scale{{config.heads}} {}

}  // namespace sft
