// Folders as transformers, or somebody else, may have written them.
#include "models/huggingface.h"

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/formats/safetensors.h"
#include "tests/doctest.h"
#include "tests/golden.h"
#include "tests/temporary_folder.h"

using namespace sft;
using test::error_of;
using Json = nlohmann::json;

namespace {

namespace fs = std::filesystem;

// A golden folder to spoil.
struct Folder {
  test::TemporaryFolder temporary;
  std::string path = temporary / "model";

  explicit Folder(const std::string& name) {
    fs::copy(test::golden("models/" + name), path, fs::copy_options::recursive);
  }
  Json config() const { return Json::parse(std::ifstream(path + "/config.json")); }
  void set(const std::string& key, const Json& value) const {
    Json json = config();
    json[key] = value;
    std::ofstream(path + "/config.json") << json;
  }
  // Rewrites the weights: rename(name) is a tensor's new name, empty: dropped.
  template <class Rename>
  void rename(Rename&& rename) const {
    const TensorFile file = open_safetensors(path + "/model.safetensors");
    std::vector<TensorSpec> specs;
    std::map<std::string, std::string> old;
    for (const TensorInfo& info : file.tensors())
      for (const std::string& name : rename(info.name)) {
        specs.push_back({name, info.shape, info.dtype});
        old[name] = info.name;
      }
    TensorWriter writer = create_safetensors(path + "/new", Metadata(), specs);
    for (const TensorSpec& spec : writer.tensors())
      writer.write(spec.name, file.view(file.at(old[spec.name])));
    writer.finish();
    fs::rename(path + "/new", path + "/model.safetensors");
  }
  Error error() const {
    const Error e = error_of([&] { open_model(path); });
    EXPECT(e.kind == Kind::input);
    return e;
  }
  void expect_error(const std::string& part) const {
    const std::string message = error().message;
    EXPECT_MESSAGE(message.find(part) != std::string::npos, message);
  }
};

using Names = std::vector<std::string>;

}  // namespace

TEST_CASE("huggingface: names, both ways") {
  for (const char* name :
       {"mask_emb", "conv.6.weight", "conv.0.norm.bias", "feat_norm.weight", "pos_conv.0.weight_g",
        "enc.norm.bias", "enc.11.attn.k.bias", "enc.0.attn.rel_bias", "enc.7.attn.rel_gate.bias",
        "enc.7.attn.rel_gate.scale", "enc.0.ffn_norm.weight", "enc.47.attn_norm.bias"})
    EXPECT(name_from_huggingface(name_to_huggingface(name, Config())) == name);
  const std::string stacked = "encoder.pos_conv_embed.layers.4.conv.bias";
  EXPECT(name_from_huggingface(stacked) == "pos_conv.4.bias");
  EXPECT(name_to_huggingface("pos_conv.4.bias", preset("data2vec-audio-base")) == stacked);
  EXPECT(name_from_huggingface("encoder.layers.3.layer_norm.bias") == "enc.3.attn_norm.bias");
  EXPECT(name_from_huggingface("encoder.pos_conv_embed.conv.parametrizations.weight.original1") ==
         "pos_conv.0.weight_v");
  for (const char* name : {"encoder.layers.x.layer_norm.bias", "encoder.layers..layer_norm.bias",
                           "encoder.layers.1234.layer_norm.bias", "encoder.layer_norm.scale", ""})
    EXPECT(name_from_huggingface(name).empty());
}

TEST_CASE("huggingface: the configuration of a folder") {
  const Config c = open_model(test::golden("models/hubert-layer")).config;
  EXPECT(c.arch == "hubert");
  EXPECT(c.width == 48);
  EXPECT(c.layers == 2);
  EXPECT(c.pre_norm);
  EXPECT(c.conv_norm == "layer");
  EXPECT(c.conv_bias);
  EXPECT(c.pos_kernel == 15);
  EXPECT(c.normalize);
  EXPECT(c.normalize_eps == 1e-7);
  EXPECT(c.provenance.string("sft.source.format") == "hf");
  EXPECT(!open_model(test::golden("models/hubert-group")).config.normalize);
}

TEST_CASE("huggingface: WavLM's relative positions, there and back") {
  const ModelFile model = open_model(test::golden("models/wavlm-layer"));
  EXPECT(model.config.arch == "wavlm");
  EXPECT(model.config.rel_buckets == 32);
  EXPECT(model.config.rel_max_distance == 50);
  EXPECT(model.tensors.find("enc.0.attn.rel_bias").shape == Shape{32, 4});
  EXPECT(model.tensors.find("enc.1.attn.rel_gate.scale").shape == Shape{4});
  EXPECT(!model.tensors.tensors.contains("enc.1.attn.rel_bias"));
  const test::TemporaryFolder folder;
  save_model(folder / "m", "hf", model.config, model.tensors);
  const Json json = Json::parse(std::ifstream(folder / "m/config.json"));
  EXPECT(json.at("architectures") == Json::array({"WavLMModel"}));
  EXPECT(json.at("num_buckets") == 32);
  EXPECT(json.at("max_bucket_distance") == 50);
  const TensorFile written = open_safetensors(folder / "m/model.safetensors");
  EXPECT(written.at("encoder.layers.1.attention.gru_rel_pos_const").shape == Shape{1, 4, 1, 1});
  EXPECT(written.at("encoder.layers.0.attention.rel_attn_embed.weight").shape == Shape{32, 4});
}

TEST_CASE("huggingface: null and absent keys take the class's defaults") {
  const Folder f("hubert-group");
  for (const char* key : {"layerdrop", "feat_proj_dropout", "feat_proj_layer_norm",
                          "num_feat_extract_layers", "layer_norm_eps"})
    f.set(key, nullptr);
  const Config c = open_model(f.path).config;
  EXPECT(c.train.layerdrop == 0.1);
  EXPECT(c.train.input_dropout == 0);
  EXPECT(c.feat_norm);
  EXPECT(c.norm_eps == 1e-5);
  fs::remove(f.path + "/preprocessor_config.json");
  EXPECT(!open_model(f.path).config.normalize);
  std::ofstream(f.path + "/preprocessor_config.json") << "{}";
  EXPECT(open_model(f.path).config.normalize);
}

TEST_CASE("huggingface: configurations that are wrong, hostile, or of other models") {
  const auto refuses = [](const char* key, const Json& value, const std::string& part) {
    const Folder f("hubert-group");
    f.set(key, value);
    f.expect_error(part);
  };
  refuses("model_type", "bert", "model_type is bert (expected hubert, wav2vec2, ");
  refuses("model_type", nullptr, "model_type is missing");
  refuses("hidden_act", "gelu_new", "hidden_act is gelu_new (expected gelu)");
  refuses("conv_pos_batch_norm", true, "conv_pos_batch_norm is true (expected false)");
  refuses("hidden_size", "32", "hidden_size is \"32\" (expected an integer)");
  refuses("hidden_size", 32.5, "hidden_size is 32.5 (expected an integer)");
  refuses("hidden_size", 1e18, "hidden_size");
  refuses("hidden_size", int64_t{1} << 60, "embedding_length");
  refuses("num_hidden_layers", -1, "block_count");
  refuses("num_hidden_layers", 4, "tensor enc.3.attn.q.weight is missing");
  refuses("num_hidden_layers", 2, "tensor enc.2.");
  refuses("num_attention_heads", 0, "attention.head_count");
  refuses("conv_dim", Json::array({16, "16"}), "conv_dim is [16,\"16\"] (expected a list");
  refuses("conv_stride", Json::array({0, 2, 2, 2, 2, 2, 2}), "stride");
  refuses("intermediate_size", 95, "(expected [95, 32])");
  refuses("conv_bias", true, "tensor conv.0.bias is missing");
  refuses("layer_norm_eps", 0.0, "layer_norm_epsilon");
  refuses("num_feat_extract_layers", 6, "num_feat_extract_layers is 6, but conv_dim has 7");
  refuses("sft", 3, "sft is 3 (expected an object)");
  refuses("sft", Json{{"hubert.blok_count", 3}}, "key hubert.blok_count is not known");
  const Folder f("hubert-group");
  std::ofstream(f.path + "/config.json") << "[1, 2";
  f.expect_error("not a JSON object");
  std::ofstream(f.path + "/config.json") << std::string(2 << 20, '[');
  f.expect_error("config.json");
}

TEST_CASE("huggingface: both spellings of weight norm, never together") {
  const std::string spelling = "parametrizations.weight.original", old = "weight_";
  const Folder f("hubert-group");
  const std::string id = model_id(open_model(f.path).tensors);
  const auto respelled = [&](std::string name) {
    const size_t at = name.find(spelling);
    if (at != std::string::npos)
      name.replace(at, spelling.size() + 1, name.back() == '0' ? "weight_g" : "weight_v");
    return name;
  };
  f.rename([&](const std::string& name) { return Names{respelled(name)}; });
  EXPECT(model_id(open_model(f.path).tensors) == id);
  const Folder twice("hubert-group");
  twice.rename([&](const std::string& name) {
    return respelled(name) == name ? Names{name} : Names{name, respelled(name)};
  });
  twice.expect_error("is there twice, in two spellings");
}

TEST_CASE("huggingface: prefixes, heads, and what nobody knows") {
  const Folder f("hubert-group");
  const std::string id = model_id(open_model(f.path).tensors);
  f.rename([](const std::string& name) {
    return name == "encoder.layer_norm.bias" ? Names{"hubert." + name, "lm_head.bias"}
                                             : Names{"hubert." + name};
  });
  const ModelFile model = open_model(f.path);
  EXPECT(model_id(model.tensors) == id);
  EXPECT(model.remarks == Names{"lm_head.bias [32]: a head, not kept"});
  EXPECT(loaded_text(model, "x").find("loaded 67/68 tensors, hubert, 3 layers of 32, 41K") == 0);

  const Folder unknown("hubert-group");
  unknown.rename([](const std::string& name) {
    return name == "encoder.layer_norm.bias" ? Names{name, "encoder.adapter.bias"} : Names{name};
  });
  unknown.expect_error("tensor encoder.adapter.bias [32] is not one of a hubert model");
  const Folder missing("hubert-group");
  missing.rename([](const std::string& name) {
    return name == "encoder.layer_norm.bias" ? Names{} : Names{name};
  });
  missing.expect_error("tensor enc.norm.bias is missing (expected [32])");
  const Folder two("hubert-group");
  two.rename([](const std::string& name) { return Names{"a." + name, "b." + name}; });
  two.expect_error("2 tensors end with feature_projection.projection.weight");
}

TEST_CASE("huggingface: a missing mask embedding is made, and said") {
  const Folder f("hubert-group");
  f.rename(
      [](const std::string& name) { return name == "masked_spec_embed" ? Names{} : Names{name}; });
  const ModelFile model = open_model(f.path);
  EXPECT(model.made == 1);
  EXPECT(model.remarks.size() == 1);
  EXPECT(loaded_text(model, "x").find("loaded 66/66 tensors") == 0);
  EXPECT(model.tensors.find("mask_emb").f32()[31] == 0);
}

TEST_CASE("huggingface: heads of Wav2Vec2ForPreTraining are kept, there and back") {
  const ModelFile model = open_model(test::golden("models/wav2vec2-group"));
  for (const char* name : {"pretrain.proj.weight", "pretrain.vq.codebook", "pretrain.vq.proj.bias",
                           "pretrain.vq_out.weight"})
    EXPECT(model.tensors.tensors.contains(name));
  EXPECT(model.tensors.find("pretrain.vq.codebook").shape.rank() == 2);
  const test::TemporaryFolder folder;
  save_model(folder / "m", "hf", model.config, model.tensors);
  const Json json = Json::parse(std::ifstream(folder / "m/config.json"));
  EXPECT(json.at("architectures") == Json::array({"Wav2Vec2ForPreTraining"}));
  const TensorFile written = open_safetensors(folder / "m/model.safetensors");
  EXPECT(written.at("quantizer.codevectors").shape.rank() == 3);
  EXPECT(written.find("wav2vec2.masked_spec_embed") != nullptr);
}

TEST_CASE("huggingface: what transformers has no key for is kept beside its own") {
  const test::TemporaryFolder folder;
  ModelFile model = open_model(test::golden("models/hubert-layer"));
  model.config.normalize_eps = 1e-5;
  model.config.train.mask_prob = 0.5;
  const auto remarks = save_model(folder / "m", "hf", model.config, model.tensors);
  REQUIRE(remarks.size() == 2);
  EXPECT(remarks[0].find("hubert.input.normalize_eps") != std::string::npos);
  EXPECT(remarks[0].find("hubert.train.mask_prob") != std::string::npos);
  EXPECT(remarks[1] == "transformers normalises with 1e-7 in place of 1e-05");
  const Config back = open_model(folder / "m").config;
  EXPECT(back.normalize_eps == 1e-5);
  EXPECT(back.train.mask_prob == 0.5);
}

TEST_CASE("huggingface: shards, whole and broken") {
  const Folder f("hubert-layer");
  EXPECT(open_model(f.path).in_file == 70);
  fs::remove(f.path + "/model-00002-of-00002.safetensors");
  f.expect_error("model-00002-of-00002.safetensors");
  fs::remove(f.path + "/model.safetensors.index.json");
  f.expect_error("no model.safetensors and no pytorch_model.bin, nor an index of either in shards");
}

TEST_CASE("huggingface: DistilHuBERT is a HuBERT without a norm before the projection") {
  const ModelFile model = open_model(test::golden("models/distilhubert.safetensors"));
  EXPECT(model.config.states() == 5);
  const test::TemporaryFolder folder;
  const std::string path = folder / "distil";
  const std::vector<std::string> remarks = save_model(path, "hf", model.config, model.tensors);
  EXPECT(remarks.size() >= 4);  // the heads are dropped by name
  const ModelFile back = open_model(path);
  EXPECT(back.config.arch == "distilhubert");
  EXPECT(back.config.states() == 3);
  EXPECT(!back.config.mask_emb);
  EXPECT(model_id(back.tensors) == model_id(model.tensors));
}

TEST_CASE("huggingface: there is no class for DeCoAR 2.0") {
  const ModelFile model = open_model(test::golden("models/decoar2.safetensors"));
  const test::TemporaryFolder folder;
  const Error e =
      test::error_of([&] { save_model(folder / "m", "hf", model.config, model.tensors); });
  EXPECT(e.kind == Kind::usage);
  EXPECT(e.message == "transformers has no class for decoar2 models");
  EXPECT(!std::filesystem::exists(folder / "m"));
}
