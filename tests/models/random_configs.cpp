// Models of random configurations through every container that their family has: tensors,
// configuration and bytes come back as they were.
#include <cstring>

#include "engine/rng.h"
#include "models/checkpoint.h"
#include "models/fairseq_config.h"
#include "tests/doctest.h"
#include "tests/temporary_folder.h"

using namespace sft;

namespace {

struct Draw {
  Draws draws;

  explicit Draw(uint32_t seed) : draws(seed, 0, 0, 0) {}

  int64_t below(uint32_t n) { return draws.below(n); }
  int64_t between(int64_t low, int64_t high) {
    return low + below(static_cast<uint32_t>(high - low + 1));
  }
  bool flag() { return below(2) == 1; }
  // A number that has few digits in decimal, as people write them, or one that has many.
  double rate() { return flag() ? static_cast<double>(below(100)) / 100 : draws.uniform(); }
};

void draw_convolutions(Draw& draw, Config& c) {
  if (c.log_mel()) return;
  c.conv_dims.clear(), c.conv_kernels.clear(), c.conv_strides.clear();
  for (int64_t i = draw.between(1, 8); i > 0; --i) {
    c.conv_dims.push_back(draw.between(1, 12));
    c.conv_strides.push_back(draw.between(1, 3));
    c.conv_kernels.push_back(c.conv_strides.back() + draw.below(4));
  }
  c.conv_bias = draw.flag();
  if (!c.stacked_positions()) c.conv_norm = draw.flag() ? "layer" : "group";
}

void draw_training(Draw& draw, Config& c) {
  auto& t = c.train;
  for (double* rate : {&t.dropout, &t.attention_dropout, &t.activation_dropout, &t.input_dropout,
                       &t.feature_dropout, &t.layerdrop, &t.feature_grad_mult, &t.mask_prob})
    *rate = draw.rate();
  t.mask_length = draw.between(1, 20);
  c.pretrain.dim = draw.between(1, 16);
  c.pretrain.temp = 0.01 + draw.rate();
  c.pretrain.vq_groups = draw.between(1, 3);
  c.pretrain.vq_vars = draw.between(1, 400);
}

Config draw_config(Draw& draw, const char* arch) {
  Config c = default_config(arch, "random");
  c.layers = draw.between(1, 3);
  c.heads = draw.between(1, 4);
  c.pos_groups = draw.between(1, 4);
  c.width = c.heads * c.pos_groups * 4 * draw.between(1, 2);
  c.ffn = draw.between(1, 40);
  c.norm_eps = draw.flag() ? 1e-5 : 1e-5 + 1e-4 * draw.rate();
  c.pos_kernel = draw.between(3, 20);
  if (c.stacked_positions())
    c.pos_depth = draw.between(2, 5);
  else
    c.pre_norm = draw.flag();
  c.normalize = draw.flag();
  c.normalize_eps = draw.flag() ? 1e-5 : 1e-7;
  c.rel_buckets = 4 * draw.between(1, 80);
  c.rel_max_distance = c.rel_buckets / 4 + draw.between(1, 900);
  draw_convolutions(draw, c);
  draw_training(draw, c);
  if (c.arch == "distilhubert" && draw.flag()) c.pretrain.distill = {draw.below(13), 12};
  check_config(c, "random");
  return c;
}

TensorMap draw_tensors(Draw& draw, const Config& c) {
  TensorMap tensors;
  for (const TensorSpec& spec : backbone_tensors(c)) {
    std::vector<float> values(static_cast<size_t>(spec.shape.count()));
    for (float& value : values) value = static_cast<float>(draw.below(1 << 20)) / 4096 - 128;
    tensors.add_owned(spec.name, spec.shape, std::move(values));
  }
  return tensors;
}

// Without what only says where a file is from.
Metadata told(Config config) {
  config.provenance = Metadata("none");
  return metadata_from_config(config);
}

void expect_back(const Config& config, const TensorMap& tensors, const std::string& format) {
  INFO(config.arch, " as ", format);
  const test::TemporaryFolder folder;
  const std::string path = folder / "m";
  save_model(path, format, config, tensors);
  const ModelFile back = open_model(path);
  EXPECT(told(back.config) == told(config));
  REQUIRE(back.tensors.tensors.size() == tensors.tensors.size());
  for (const auto& [name, tensor] : tensors.tensors) {
    INFO(name);
    const Tensor other = back.tensors.find(name);
    REQUIRE(other.shape == tensor.shape);
    EXPECT(std::memcmp(other.data, tensor.data, static_cast<size_t>(tensor.bytes())) == 0);
  }
}

std::vector<const char*> formats_of(const Config& config) {
  std::vector<const char*> formats = {"gguf", "safetensors", "s3prl"};
  const bool distilled = config.arch == "distilhubert";
  if (!distilled && !config.log_mel()) formats.push_back("fairseq");
  if (!config.log_mel() && config.pretrain.distill.empty()) formats.push_back("hf");
  return formats;
}

}  // namespace

TEST_CASE("random models: configuration and tensors come back from every container") {
  constexpr uint32_t kOfEach = 5;
  for (const char* arch :
       {"hubert", "wav2vec2", "unispeechsat", "wavlm", "data2vecaudio", "distilhubert", "decoar2"})
    for (uint32_t seed = 0; seed < kOfEach; ++seed) {
      INFO("seed ", seed);
      Draw draw(seed);
      const Config config = draw_config(draw, arch);
      const TensorMap tensors = draw_tensors(draw, config);
      for (const char* format : formats_of(config)) expect_back(config, tensors, format);
    }
}

TEST_CASE("random models: 1,000 configurations through metadata and their texts") {
  constexpr const char* kArchs[] = {"hubert",        "wav2vec2",     "unispeechsat", "wavlm",
                                    "data2vecaudio", "distilhubert", "decoar2"};
  for (uint32_t seed = 0; seed < 1000; ++seed) {
    Draw draw(seed);
    const Metadata metadata = told(draw_config(draw, kArchs[seed % std::size(kArchs)]));
    EXPECT(told(config_from_metadata(metadata, "x")) == metadata);
    EXPECT(told(config_from_metadata(metadata_from_strings(metadata_to_strings(metadata), "x"),
                                     "x")) == metadata);
  }
}
