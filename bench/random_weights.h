// Weights for benches.
#pragma once

#include <vector>

#include "models/checkpoint.h"

namespace sft {

// Of the size that initialisation gives, from a small pool of random numbers: drawing each would
// take seconds, and none of the arithmetic depends on them.
class RandomWeights {
 public:
  explicit RandomWeights(uint64_t seed);
  void add(TensorMap& to, const std::vector<TensorSpec>& specs);

 private:
  void fill(const TensorSpec& spec, std::vector<float>& values);

  std::vector<float> pool_;
  size_t next_ = 0;
};

// Noise with an rms of 0.1, of utterance b.
std::vector<float> noise(uint64_t seed, uint32_t b, int64_t samples);

}  // namespace sft
