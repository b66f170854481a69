#include "models/extract.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "tests/doctest.h"
#include "tests/golden.h"

namespace sft {
namespace {

std::vector<float> tone(size_t samples) {
  std::vector<float> wave(samples);
  for (size_t i = 0; i < samples; ++i) wave[i] = 0.3f * std::sin(0.05f * static_cast<float>(i));
  return wave;
}

TEST_CASE("extract: derived weights that are not kept give the same bits in less memory") {
  for (const char* name : {"models/hubert-group", "models/wav2vec2-layer"}) {
    const ModelFile model = open_model(test::golden(name));
    const std::vector<int> states = parse_states("all", model.config.layers);
    Extractor kept(model, states), once(model, states, {.once = true});
    const std::vector<float> a = tone(2000), b = tone(9000);
    const std::vector<int32_t> lengths = {2000, 9000};
    const int64_t kept_bytes = kept.bytes(lengths);
    EXPECT(once.bytes(lengths) < kept_bytes);
    const std::vector<std::span<const float>> waves = {a, b};
    kept.run(waves), once.run(waves);
    for (size_t i = 0; i < states.size(); ++i)
      for (int u : {0, 1}) {
        const Tensor x = kept.state(i, u), y = once.state(i, u);
        EXPECT(std::memcmp(x.data, y.data, x.bytes()) == 0);
      }
  }
}

}  // namespace
}  // namespace sft
