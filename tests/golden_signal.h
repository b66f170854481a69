// What the golden files were made with: tests/golden/make/tiny.py.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <vector>

#include "engine/formats/tensor_file.h"
#include "tests/golden.h"

namespace sft::test {

// Integers only, so both sides have the same bits.
inline std::vector<float> golden_signal(uint32_t seed, int64_t samples) {
  std::vector<float> out(samples);
  uint32_t state = seed;
  for (int64_t n = 0; n < samples; ++n) {
    state = state * 1664525u + 1013904223u;
    const int32_t noise = static_cast<int32_t>(state >> 16) - 32768;
    const auto p = static_cast<int32_t>(n % 4000);
    const int32_t envelope = 200 + std::min(p, 4000 - p);
    out[n] = static_cast<float>((noise * envelope) >> 14) / 32768.0f;
  }
  return out;
}

// Tensors of a golden file by name.
class GoldenFile {
 public:
  explicit GoldenFile(const std::string& name) : file_(open_tensor_file(golden(name))) {}

  bool has(const std::string& name) const { return file_.find(name) != nullptr; }
  Shape shape(const std::string& name) const { return file_.at(name).shape; }
  std::vector<float> values(const std::string& name) const {
    const TensorInfo& info = file_.at(name);
    std::vector<float> out(info.shape.count());
    file_.read_f32(info, out);
    return out;
  }
  std::vector<int32_t> integers(const std::string& name) const {
    std::vector<int32_t> out;
    for (float x : values(name)) out.push_back(static_cast<int32_t>(std::lround(x)));
    return out;
  }
  int64_t integer(const std::string& name) const { return integers(name).at(0); }
  const std::vector<TensorInfo>& tensors() const { return file_.tensors(); }

 private:
  TensorFile file_;
};

// |a - b| / |b|, Frobenius; infinite if a value is not finite.
inline double relative_error(const float* a, const float* b, int64_t count) {
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < count; ++i) {
    difference += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
    norm += static_cast<double>(b[i]) * b[i];
  }
  return std::isfinite(difference) ? std::sqrt(difference / (norm + 1e-300)) : INFINITY;
}

}  // namespace sft::test
