#include "models/checkpoint.h"

#include "tests/doctest.h"

using namespace sft;
using test::error_of;

namespace {

Config with(const std::string& key, MetadataValue value) {
  Metadata metadata = metadata_from_config(preset("hubert-base"));
  metadata.set(key, std::move(value));
  return config_from_metadata(metadata, "m.gguf");
}

void refuses(const std::string& key, MetadataValue value, const std::string& message) {
  const Error e = error_of([&] { with(key, value); });
  EXPECT(e.kind == Kind::input);
  EXPECT_MESSAGE(e.message.find(message) != std::string::npos, e.message);
}

}  // namespace

TEST_CASE("config: metadata and back, for every preset") {
  for (const std::string& name : preset_names()) {
    const Config config = preset(name);
    check_config(config, name);
    const Metadata metadata = metadata_from_config(config);
    EXPECT(metadata_from_config(config_from_metadata(metadata, name)) == metadata);
  }
  const Error e = error_of([] { preset("hubert-bse"); });
  EXPECT(e.kind == Kind::usage);
  EXPECT(e.hint == "did you mean hubert-base?");
}

namespace {

int64_t parameters(const std::string& name) {
  int64_t count = 0;
  for (const TensorSpec& tensor : backbone_tensors(preset(name)))
    if (is_backbone(tensor.name)) count += tensor.shape.count();
  return count;
}

}  // namespace

TEST_CASE("config: presets have the parameters of the published models") {
  const std::pair<const char*, int64_t> published[] = {
      {"hubert-base", 94'371'712},
      {"hubert-large", 315'435'136},
      {"hubert-xlarge", 962'493'824},
      {"wav2vec2-base", 94'371'712},
      {"wav2vec2-large-ls960", 315'428'992},
      {"wav2vec2-large", 315'438'720},
      {"xlsr-53", 315'438'720},
      {"xls-r-300m", 315'438'720},
      {"xls-r-1b", 962'497'408},
      {"xls-r-2b", 2'159'259'648},
      {"unispeech-sat-base", 94'371'712},
      {"unispeech-sat-large", 315'435'136},
      {"data2vec-audio-base", 93'164'288},
      {"data2vec-audio-large", 313'276'416},
      {"distilhubert", 23'491'200},
      {"decoar2", 89'837'696},
  };
  for (const auto& [name, count] : published)
    EXPECT_MESSAGE(parameters(name) == count, fmt::format("{}: {}", name, parameters(name)));
  EXPECT(preset("hubert-xlarge").head_width() == 80);
  EXPECT(preset("xls-r-2b").head_width() == 120);
}

TEST_CASE("config: frames of the usual convolutions") {
  const Config config;
  EXPECT(config.hop() == 320);
  EXPECT(config.receptive() == 400);
  EXPECT(config.frames(399) == 0);
  EXPECT(config.frames(400) == 1);
  EXPECT(config.frames(719) == 1);
  EXPECT(config.frames(720) == 2);
  EXPECT(config.frames(99200) == 309);
}

TEST_CASE("config: log-mel frames are those of the usual convolutions, from 560 samples on") {
  const Config waves, mel = preset("decoar2");
  EXPECT(mel.frames(559) == 0);
  EXPECT(mel.frames(560) == 1);
  for (int64_t n = 560; n < 3000; ++n) REQUIRE(mel.frames(n) == waves.frames(n));
  EXPECT(mel.states() == 13);
  EXPECT(preset("distilhubert").states() == 5);
}

TEST_CASE("config: a task, and what a file says of itself, are kept") {
  Config config = preset("wav2vec2-base");
  config.task = {.kind = "ctc", .head = "blstm", .width = 8, .layers = 2, .units = {"_", "A"}};
  config.provenance.set("sft.base.id", std::string("1234"));
  config.provenance.set("general.tags", std::vector<std::string>{"speech"});
  config.provenance.set("general.file_type", int64_t{1});
  const Config back = config_from_metadata(metadata_from_config(config), "m");
  EXPECT(back.task.units == config.task.units);
  EXPECT(back.task.layers == 2);
  EXPECT(back.provenance.string("sft.base.id") == "1234");
  EXPECT(back.provenance.strings("general.tags") == std::vector<std::string>{"speech"});
  EXPECT(!back.provenance.has("general.file_type"));  // of the container, not of the model
}

TEST_CASE("config: absent keys take their defaults, unknown ones are errors") {
  Metadata metadata;
  metadata.set("general.architecture", std::string("hubert"));
  EXPECT(config_from_metadata(metadata, "m").width == 768);
  metadata.set("hubert.blok_count", int64_t{3});
  const Error e = error_of([&] { config_from_metadata(metadata, "m"); });
  EXPECT(e.message == "m: key hubert.blok_count is not known");
  EXPECT(e.hint == "did you mean hubert.block_count?");
  refuses("general.architecture", std::string("llama"),
          "architecture llama (expected hubert, wav2vec2, unispeechsat, wavlm, ");
  refuses("hubert.block_count", std::string("12"), "hubert.block_count");
}

TEST_CASE("config: contradictions and sizes out of range") {
  refuses("hubert.attention.head_count", int64_t{7}, "head_count 7 does not divide");
  refuses("hubert.attention.head_count", int64_t{2}, "heads are 384 wide");
  refuses("hubert.block_count", int64_t{1} << 40, "block_count is not in 1..64");
  refuses("hubert.embedding_length", int64_t{-768}, "is not in 1..2^20");
  refuses("hubert.pos_conv.groups", int64_t{0}, "pos_conv.groups 0");
  refuses("hubert.conv.kernels", std::vector<int64_t>{10, 3}, "lists of one length");
  refuses("hubert.conv.strides", std::vector<int64_t>{5, 2, 2, 2, 2, 2, 3}, "stride <= kernel");
  refuses("hubert.conv.norm", std::string("batch"), "conv.norm");
  refuses("hubert.attention.layer_norm_epsilon", std::nan(""), "layer_norm_epsilon");
  refuses("hubert.train.dropout", 1.0, "a dropout is not in [0, 1)");
  refuses("hubert.pretrain.temp", 0.0, "pretrain.temp");
  refuses("sft.task.kind", std::string("sing"), "sft.task.kind");
  Metadata wavlm = metadata_from_config(preset("wavlm-base"));
  const auto refuses_bias = [&](const char* key, int64_t value, const std::string& message) {
    Metadata metadata = wavlm;
    metadata.set(std::string("wavlm.attention.") + key, value);
    const Error e = error_of([&] { config_from_metadata(metadata, "m.gguf"); });
    EXPECT_MESSAGE(e.message.find(message) != std::string::npos, e.message);
  };
  refuses_bias("rel_buckets", 0, "rel_buckets is not a multiple of 4");
  refuses_bias("rel_buckets", 322, "rel_buckets is not a multiple of 4");
  refuses_bias("rel_max_distance", 80, "rel_max_distance 80 is not in 81..2^16");
  refuses_bias("rel_max_distance", int64_t{1} << 40, "is not in 81..2^16");
  Config config;
  config.conv_kernels = config.conv_strides = std::vector<int64_t>(16, 64);
  config.conv_dims = std::vector<int64_t>(16, 8);
  const Error e = error_of([&] { check_config(config, "m"); });
  EXPECT(e.message == "m: configuration: conv.strides: their product is above 2^16");
}

TEST_CASE("config: values as JSON, and back") {
  const MetadataValue values[] = {true,
                                  int64_t{-3},
                                  1e-5,
                                  2.0,
                                  std::string("a \"b\" \n ü"),
                                  std::vector<int64_t>{1, 2},
                                  std::vector<double>{1, 2.5},
                                  std::vector<std::string>{"|", ""},
                                  std::vector<std::string>{}};
  for (const MetadataValue& value : values) {
    Metadata metadata;
    metadata.set("k", value);
    EXPECT(metadata_from_strings(metadata_to_strings(metadata), "m") == metadata);
  }
  for (const char* text : {"", "null", "{}", "[1, \"a\"]", "[[1]]", "tru"}) {
    const Error e = error_of([&] { value_from_json(text, "m", "k"); });
    EXPECT(e.message == fmt::format("m: k is {} (expected a number, a string, true or false, or a "
                                    "list)",
                                    text));
  }
  EXPECT(value_from_json("18446744073709551615", "m", "k") == MetadataValue(UINT64_MAX));
}
