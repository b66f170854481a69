#include "bench/random_weights.h"

#include <cmath>

#include "engine/rng.h"

namespace sft {

RandomWeights::RandomWeights(uint64_t seed) : pool_(1 << 16) {
  Draws draws(seed, 0, 0, fnv1a("bench.weights"));
  for (float& x : pool_) x = static_cast<float>(draws.normal());
}

void RandomWeights::add(TensorMap& to, const std::vector<TensorSpec>& specs) {
  for (const TensorSpec& spec : specs) {
    std::vector<float> values(spec.shape.count(), 1.0f);
    if (!spec.name.ends_with("norm.weight") && !spec.name.ends_with("weight_g") &&
        !spec.name.ends_with("rel_gate.scale"))
      fill(spec, values);
    to.add_owned(spec.name, spec.shape, std::move(values));
  }
}

void RandomWeights::fill(const TensorSpec& spec, std::vector<float>& values) {
  const double fan_in =
      static_cast<double>(spec.shape.count()) / static_cast<double>(spec.shape[0]);
  const auto scale = static_cast<float>(spec.shape.rank() > 1 ? 1 / std::sqrt(fan_in) : 0.01);
  for (float& x : values) x = scale * pool_[next_++ % pool_.size()];
  next_ += 12345;  // no two tensors alike
}

std::vector<float> noise(uint64_t seed, uint32_t b, int64_t samples) {
  Draws sound(seed, b, 0, fnv1a("bench.audio"));
  std::vector<float> wave(samples);
  for (float& x : wave) x = static_cast<float>(0.1 * sound.normal());
  return wave;
}

}  // namespace sft
