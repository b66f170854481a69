#include "models/extract.h"

#include <cmath>
#include <cstring>
#include <vector>

#include "engine/formats/numbers.h"
#include "models/initialise.h"
#include "tests/doctest.h"
#include "tests/golden.h"
#include "tests/op_spec.h"
#include "tests/temporary_folder.h"

namespace sft {
namespace {

std::vector<float> tone(size_t samples) {
  std::vector<float> wave(samples);
  for (size_t i = 0; i < samples; ++i) wave[i] = 0.3f * std::sin(0.05f * static_cast<float>(i));
  return wave;
}

TEST_CASE("extract: derived weights that are not kept give the same bits in less memory") {
  for (const char* name : {"models/hubert-group", "models/wav2vec2-layer", "models/wavlm-layer"}) {
    const ModelFile model = open_model(test::golden(name));
    const std::vector<int> states = parse_states("all", model.config);
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

std::vector<float> floats_of(Tensor t) { return {t.f32(), t.f32() + t.count()}; }

TensorMap widened(const TensorMap& tensors) {
  TensorMap wide;
  for (const auto& [name, t] : tensors.tensors) {
    std::vector<float> values(t.count());
    to_f32(t.dtype, static_cast<const std::byte*>(t.data), values.data(), t.count());
    wide.add_owned(name, t.shape, std::move(values));
  }
  return wide;
}

TEST_CASE("extract: a last convolution in pairs of rows; packed, each has the bits it has alone") {
  Config config = preset("hubert-tiny");
  config.conv_kernels = {10, 3}, config.conv_strides = {5, 2};
  config.conv_dims.resize(2);
  ModelFile model{.config = config};
  initialise_missing(model.tensors, backbone_tensors(config), 1);
  Extractor extractor(model, {0});
  const std::vector<float> a = tone(2005), b = tone(901);  // an odd number of hops of 10
  extractor.run(std::vector<std::span<const float>>{a, b});
  const std::vector<float> packed = floats_of(extractor.state(0, 1));
  extractor.run(std::vector<std::span<const float>>{b});
  EXPECT(packed == floats_of(extractor.state(0, 0)));
}

TEST_CASE("extract: a file of narrow types is computed as its wide values, in less memory") {
  const test::TemporaryFolder folder;
  const Config config = preset("hubert-tiny");
  TensorMap tensors;
  initialise_missing(tensors, backbone_tensors(config), 1);
  const std::vector<int> states = parse_states("all", config);
  const std::vector<float> a = tone(2000), b = tone(9000);
  const std::vector<std::span<const float>> waves = {a, b};
  const std::vector<int32_t> lengths = {2000, 9000};
  for (const Dtype dtype : {Dtype::f16, Dtype::bf16, Dtype::q8_0}) {
    const std::string path = folder / fmt::format("{}.gguf", dtype);
    save_model(path, "gguf", config, tensors, Existing::refuse, dtype);
    const ModelFile narrow = open_model(path);
    ModelFile wide = narrow;
    wide.tensors = widened(narrow.tensors);
    Extractor stored(narrow, states), floats(wide, states);
    stored.run(waves), floats.run(waves);
    for (size_t i = 0; i < states.size(); ++i)
      for (int u : {0, 1}) {
        const Tensor x = stored.state(i, u), y = floats.state(i, u);
        EXPECT(std::memcmp(x.data, y.data, x.bytes()) == 0);
      }
    // Neither panels of the matrices nor wide copies of them.
    EXPECT(stored.bytes(lengths) < floats.bytes(lengths) - parameter_count(tensors) * 2);
  }
}

TEST_CASE("extract: the longest file that the memory is enough for") {
  const ModelFile model = open_model(test::golden("models/hubert-group"));
  for (const Where where : everywhere()) {
    cuda::Runtime* gpu = where.device == Device::cuda ? &shared_gpu() : nullptr;
    Extractor extractor(model, {0, 2}, {.gpu = gpu, .math = where.math});
    const auto bytes = [&](int64_t samples) {
      const auto length = static_cast<int32_t>(samples);
      return extractor.bytes({&length, 1});
    };
    const int64_t available = bytes(16000), longest = extractor.longest(48000, available);
    EXPECT(longest >= 16000);
    EXPECT(bytes(longest) <= available);
    EXPECT(bytes(longest + 1600) > available);
    EXPECT(extractor.longest(48000, int64_t{1} << 40) == 48000);
    EXPECT(extractor.longest(48000, 1000) == 0);
  }
}

}  // namespace
}  // namespace sft
