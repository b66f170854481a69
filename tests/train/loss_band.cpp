// Training in 16 bits: over 200 updates the loss stays where `exact` runs of other seeds have it.
#include <algorithm>
#include <nlohmann/json.hpp>
#include <numeric>
#include <sstream>

#include "engine/cpu/narrow.h"
#include "tests/train/tiny_speech.h"

using namespace sft;

namespace {

constexpr int kUpdates = 200, kWindow = 20;
constexpr double kShare = 0.02;  // of the band, between exact and rounded runs of one seed

// Means of the loss over windows of kWindow updates.
std::vector<double> loss_curve(const test::TinySpeech& speech, int seed, std::string_view math) {
  const std::string run = fmt::format("{}-{}", math, seed);
  finetune(
      speech.job(run, {"train.steps=200", "eval.every=200", "train.head_only=0.1", "optim.lr=1e-2",
                       fmt::format("run.seed={}", seed), fmt::format("run.math={}", math)}));
  std::vector<double> losses;
  std::istringstream text(read_text(speech.folder / run + "/metrics.jsonl"));
  for (std::string line; std::getline(text, line);)
    if (auto json = nlohmann::json::parse(line); json.contains("loss"))
      losses.push_back(json["loss"]);
  REQUIRE(losses.size() == kUpdates);
  std::vector<double> curve;
  for (auto at = losses.begin(); at != losses.end(); at += kWindow)
    curve.push_back(std::accumulate(at, at + kWindow, 0.0) / kWindow);
  return curve;
}

}  // namespace

TEST_CASE("math: 200 updates in 16 bits keep within the band of exact runs' seeds") {
  for (const Math math : {Math::fast16, Math::bf16})
    if (!cpu::narrow::available(math)) return test::skip("needs AVX-512 with VNNI and BF16");
  const test::TinySpeech speech;
  std::vector<std::vector<double>> exact;
  for (int seed = 0; seed < 5; ++seed) exact.push_back(loss_curve(speech, seed, "exact"));
  EXPECT(exact[0].back() < 0.5 * exact[0].front());  // they learn
  for (const Math math : {Math::fast16, Math::bf16}) {
    const std::vector<double> rounded = loss_curve(speech, 0, name(math));
    for (size_t i = 0; i < rounded.size(); ++i) {
      double low = exact[0][i], high = low;
      for (const auto& curve : exact)
        low = std::min(low, curve[i]), high = std::max(high, curve[i]);
      EXPECT_MESSAGE(std::abs(rounded[i] - exact[0][i]) <= kShare * (high - low),
                     fmt::format("{} updates {} on: {}, exact {} ({} to {})", name(math),
                                 i * kWindow, rounded[i], exact[0][i], low, high));
    }
  }
}
