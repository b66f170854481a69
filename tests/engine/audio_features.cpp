#include "engine/audio/features.h"

#include <algorithm>
#include <cmath>

#include "tests/doctest.h"
#include "tests/golden/audio_features.h"

using namespace sft;

namespace {

// The signal of tests/golden/make/audio_features.py: noise, a rising square wave, one bit of noise,
// silence.
std::vector<float> signal() {
  constexpr int n = 3759;
  std::vector<float> out;
  uint32_t state = 1, phase = 0;
  for (int i = 0; i < n; i++) {
    state = state * 1664525 + 1013904223;
    phase = (phase + 1000 + 8 * static_cast<uint32_t>(i)) & 0xffff;
    const int noise = static_cast<int>(state >> 18) - 8192;
    const int parts[] = {noise, (phase < 32768 ? 6000 : -6000) + (noise >> 6), noise >> 13, 0};
    out.push_back(static_cast<float>(parts[i * 4 / n]) / 32768);
  }
  return out;
}

// The golden values have 7 digits, the features are rounded to float.
double worst(std::span<const float> got, std::span<const float> golden) {
  REQUIRE(got.size() == golden.size());
  double worst = 0;
  for (size_t i = 0; i < got.size(); i++) {
    REQUIRE(std::isfinite(got[i]));
    worst = std::max(worst, std::abs(double{got[i]} - golden[i]) / (1 + std::abs(golden[i])));
  }
  return worst;
}

}  // namespace

TEST_CASE("features: log-mel and MFCC equal the reference's") {
  EXPECT(worst(LogMel80()(signal()), golden::kLogMel80) < 1e-6);
  EXPECT(worst(Mfcc39()(signal()), golden::kMfcc39) < 1e-6);
}

TEST_CASE("features: frames at the borders, and too few samples") {
  EXPECT(frames_at_100hz(0) == 0);
  EXPECT(frames_at_100hz(399) == 0);
  EXPECT(frames_at_100hz(400) == 1);
  EXPECT(frames_at_100hz(401) == 1);
  EXPECT(frames_at_100hz(560) == 2);
  const std::vector<float> x = signal();
  const auto first = [&](size_t n) { return std::span(x).first(n); };
  EXPECT(Mfcc39()(first(400)).size() == 39);
  EXPECT(Mfcc39()(first(401)).size() == 39);
  EXPECT(LogMel80()(first(560)).size() == 80);
  EXPECT(LogMel80()(first(720)).size() == 160);
  EXPECT(test::error_of([&] { Mfcc39()(first(399)); }).kind == Kind::input);
  const Error e = test::error_of([&] { LogMel80()(first(559)); });
  EXPECT(e.message == "features: 559 samples at 16 kHz (expected at least 560)");
}

TEST_CASE("features: a frame does not depend on its neighbours, silence is finite") {
  const std::vector<float> x = signal();
  const std::vector<float> whole = Mfcc39()(x);
  const std::vector<float> later = Mfcc39()(std::span(x).subspan(5 * 160));
  EXPECT(std::equal(later.begin(), later.begin() + 13, whole.begin() + 5 * 39));
  for (float v : LogMel80()(std::vector<float>(800))) EXPECT(v == 0);
}
