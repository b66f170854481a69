// Model files of every container, from the tiny folders that transformers wrote.
#include "models/checkpoint.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "engine/formats/gguf.h"
#include "engine/formats/safetensors.h"
#include "engine/io/file.h"
#include "models/initialise.h"
#include "tests/doctest.h"
#include "tests/golden.h"
#include "tests/temporary_folder.h"

using namespace sft;
using test::error_of;
namespace fs = std::filesystem;

namespace {

const char* const kFolders[] = {
    "hubert-group",       "hubert-layer", "wav2vec2-group", "wav2vec2-layer",
    "unispeechsat-layer", "wavlm-group",  "wavlm-layer",    "data2vec"};

ModelFile open_golden(const std::string& name) {
  return open_model(test::golden("models/" + name));
}

bool same_tensors(const TensorMap& a, const TensorMap& b) {
  if (a.tensors.size() != b.tensors.size()) return false;
  for (const auto& [name, tensor] : a.tensors) {
    const Tensor other = b.find(name);
    if (!other.data || other.shape != tensor.shape || other.dtype != tensor.dtype ||
        std::memcmp(other.data, tensor.data, static_cast<size_t>(tensor.bytes())) != 0)
      return false;
  }
  return true;
}

// Everything but the labels that saving adds.
Metadata said(const Config& config) {
  Config c = config;
  c.provenance.set("general.size_label", std::string());
  return metadata_from_config(c);
}

std::string bytes(const std::string& path) { return read_text(path, 64 << 20); }

// A small model as a file, with its tensors changed by `change`.
struct Altered {
  test::TemporaryFolder folder;
  std::string path = folder / "m.gguf";

  template <class Change>
  explicit Altered(Change&& change) {
    const ModelFile model = open_golden("hubert-group");
    std::vector<TensorSpec> specs = backbone_tensors(model.config);
    TensorMap tensors = model.tensors;
    change(specs, tensors);
    TensorWriter writer = create_gguf(path, metadata_from_config(model.config), specs);
    for (const TensorSpec& spec : specs) writer.write(spec.name, tensors.find(spec.name));
    writer.finish();
  }
  std::string error() const {
    const Error e = error_of([&] { open_model(path); });
    EXPECT(e.kind == Kind::input);
    return e.message.substr(std::min(path.size(), e.message.size()));
  }
};

TensorSpec& find(std::vector<TensorSpec>& specs, std::string_view name) {
  for (TensorSpec& spec : specs)
    if (spec.name == name) return spec;
  throw Error(Kind::internal, std::string(name), "");
}

}  // namespace

TEST_CASE("checkpoint: every container holds the same tensors, configuration and id") {
  for (const char* name : kFolders) {
    const test::TemporaryFolder folder;
    const ModelFile model = open_golden(name);
    const std::string id = model_id(model.tensors);
    std::string from = test::golden(std::string("models/") + name);
    for (const char* file : {"a.gguf", "b.safetensors", "c", "d.gguf", "e"}) {
      const ModelFile in = open_model(from);
      from = folder / file;
      save_model(from, format_of_name(from), in.config, in.tensors);
      const ModelFile out = open_model(from);
      INFO(name, " ", file);
      EXPECT(same_tensors(model.tensors, out.tensors));
      EXPECT(said(out.config) == said(model.config));
      EXPECT(model_id(out.tensors) == id);
      EXPECT(out.format == format_of_name(from));
    }
    EXPECT(bytes(folder / "a.gguf") == bytes(folder / "d.gguf"));
    for (const char* file : {"model.safetensors", "config.json", "preprocessor_config.json"})
      EXPECT(bytes(folder / "c/" + file) == bytes(folder / "e/" + file));
  }
}

TEST_CASE("checkpoint: the id is that of names, shapes and values") {
  const ModelFile model = open_golden("hubert-group");
  const std::string id = model_id(model.tensors);
  EXPECT(id.size() == 32);
  TensorMap tensors = model.tensors;
  tensors.add_owned("task.out.bias", {1}, {1});
  tensors.add_owned("pretrain.proj.bias", {1}, {1});
  EXPECT(model_id(tensors) == id);  // of the backbone
  const Tensor bias = tensors.find("enc.0.attn.o.bias");
  std::vector<float> values(bias.f32(), bias.f32() + bias.count());
  values[3] = std::nextafter(values[3], 1.0f);
  tensors.add_owned("enc.0.attn.o.bias", bias.shape, values);
  EXPECT(model_id(tensors) != id);
}

TEST_CASE("checkpoint: other types of numbers are read; the id is of their values") {
  const Altered half([](auto& specs, auto&) {
    for (TensorSpec& spec : specs)
      if (spec.name.ends_with("up.weight")) spec.dtype = Dtype::bf16;
  });
  const ModelFile model = open_model(half.path);
  EXPECT(model.tensors.find("enc.1.ffn.up.weight").dtype == Dtype::bf16);
  const test::TemporaryFolder folder;
  save_model(folder / "f32.gguf", "gguf", model.config, model.tensors);
  const ModelFile whole = open_model(folder / "f32.gguf");
  EXPECT(whole.tensors.find("enc.1.ffn.up.weight").dtype == Dtype::f32);
  EXPECT(model_id(whole.tensors) == model_id(model.tensors));
}

TEST_CASE("checkpoint: leading dimensions of 1 that another writer dropped") {
  const Altered dropped([](auto& specs, TensorMap& tensors) {
    const Shape flat{16, 10};
    find(specs, "conv.0.weight").shape = flat;
    tensors.tensors["conv.0.weight"] = tensors.find("conv.0.weight").reshaped(flat);
  });
  // [16, 1, 10] is not [16, 10] with leading ones: only these are restored
  EXPECT(dropped.error() == ": tensor conv.0.weight is [16, 10] (expected [16, 1, 10])");
  const Altered leading([](auto& specs, TensorMap& tensors) {
    const Shape more{1, 1, 16};
    find(specs, "pos_conv.0.weight_g").shape = more;
    tensors.tensors["pos_conv.0.weight_g"] = tensors.find("pos_conv.0.weight_g").reshaped(more);
  });
  EXPECT(open_model(leading.path).tensors.find("pos_conv.0.weight_g").shape == Shape{16});
}

TEST_CASE("checkpoint: missing, left over, mis-shaped tensors, and other types") {
  const Altered missing([](auto& specs, auto&) {
    std::erase_if(specs, [](const TensorSpec& s) { return s.name == "enc.1.ffn.up.bias"; });
  });
  EXPECT(missing.error() == ": tensor enc.1.ffn.up.bias is missing (expected [96])");
  const Altered extra([](auto& specs, TensorMap& tensors) {
    specs.push_back({"enc.3.attn.o.bias", {2}});
    tensors.add_owned("enc.3.attn.o.bias", {2}, {0, 0});
  });
  EXPECT(extra.error() ==
         ": tensor enc.3.attn.o.bias [2] is not one that its configuration (hubert) asks for");
  const Altered shape([](auto& specs, TensorMap& tensors) {
    find(specs, "mask_emb").shape = {31};
    tensors.add_owned("mask_emb", {31}, std::vector<float>(31));
  });
  EXPECT(shape.error() == ": tensor mask_emb is [31] (expected [32])");
  const Altered head([](auto& specs, TensorMap& tensors) {
    specs.push_back({"task.out.bias", {2}});
    tensors.add_owned("task.out.bias", {2}, {0, 0});
  });
  EXPECT(head.error() ==
         ": tensor task.out.bias [2] is not one that its configuration (hubert) asks for");
  const Altered projection([](auto& specs, TensorMap& tensors) {
    specs.push_back({"pretrain.proj.weight", {256, 31}});
    tensors.add_owned("pretrain.proj.weight", {256, 31}, std::vector<float>(256 * 31));
  });
  EXPECT(projection.error() == ": tensor pretrain.proj.weight is [256, 31] (expected [256, 32])");
}

TEST_CASE("checkpoint: a task head is asked for with its shapes") {
  const test::TemporaryFolder folder;
  const std::string path = folder / "m.gguf";
  ModelFile model = open_golden("hubert-group");
  model.config.task = {.kind = "ctc", .head = "linear", .units = {"_", "a", "b"}};
  save_model(path, "gguf", model.config, model.tensors);
  EXPECT(error_of([&] { open_model(path); }).message ==
         path + ": tensor task.out.weight is missing (expected [3, 32])");
  model.tensors.add_owned("task.out.weight", {3, 32}, std::vector<float>(96));
  model.tensors.add_owned("task.out.bias", {3}, {0, 1, 2});
  save_model(path, "gguf", model.config, model.tensors, Existing::replace);
  EXPECT(open_model(path).config.task.units.size() == 3);
  save_model(folder / "hf", "hf", model.config, model.tensors);
  EXPECT(open_model(folder / "hf").config.task.units == model.config.task.units);
}

TEST_CASE("checkpoint: values that are not finite are found") {
  const ModelFile model = open_golden("hubert-group");
  check_finite(model);
  EXPECT(checked_id(model) == model_id(model.tensors));
  for (float bad : {NAN, INFINITY, -INFINITY}) {
    ModelFile broken = model;
    std::vector<float> values(96 * 32, 1.0f);
    values[2000] = bad;
    broken.tensors.add_owned("enc.2.ffn.up.weight", {96, 32}, values);
    const Error e = error_of([&] { check_finite(broken); });
    EXPECT(e.kind == Kind::input);
    EXPECT(e.message == fmt::format("{}: tensor enc.2.ffn.up.weight: element 2000 is {} (expected "
                                    "finite numbers)",
                                    model.path, bad));
    EXPECT(error_of([&] { checked_id(broken); }).message == e.message);
  }
}

TEST_CASE("checkpoint: a run is its best checkpoint") {
  namespace fs = std::filesystem;
  const test::TemporaryFolder folder;
  const std::string run = folder / "run";
  fs::create_directories(run + "/ckpt/step-00000010");
  std::ofstream(run + "/run.toml") << "\n";
  const auto error = [&] { return error_of([&] { open_model(run); }); };
  EXPECT(error().message == run + ": this run has no best checkpoint");
  EXPECT(error().hint == "it has no checkpoint yet");
  std::ofstream(run + "/ckpt/LAST") << "step-00000010\n";
  EXPECT(error().hint == "name a checkpoint: " + run + "/ckpt/step-00000010");
  const ModelFile model = open_golden("hubert-group");
  save_model(run + "/ckpt/step-00000010/model.gguf", "gguf", model.config, model.tensors);
  std::ofstream(run + "/ckpt/BEST") << "step-00000010\n";
  const ModelFile best = open_model(run);
  EXPECT(model_id(best.tensors) == model_id(model.tensors));
  EXPECT(best.remarks == std::vector<std::string>{run + ": this run is not finished"});
  std::ofstream(run + "/done") << "\n";
  EXPECT(open_model(run).remarks.empty());
  EXPECT(open_model(run + "/ckpt/step-00000010").config.width == 32);
  std::ofstream(run + "/ckpt/BEST") << "../../elsewhere\n";
  EXPECT(error().message.find("../../elsewhere is no checkpoint's name") != std::string::npos);
}

TEST_CASE("checkpoint: what is not a model") {
  const test::TemporaryFolder folder;
  EXPECT(error_of([&] { open_model(folder.path()); }).message.find("this folder is no model") !=
         std::string::npos);
  EXPECT(error_of([&] { open_model(folder / "absent.gguf"); }).kind == Kind::input);
  const Error bare =
      error_of([&] { open_model(test::golden("models/hubert-group/model.safetensors")); });
  EXPECT(bare.message.find("has no configuration of a model") != std::string::npos);
  EXPECT(bare.hint.find("read as its folder") != std::string::npos);
  std::ofstream(folder / "a.txt") << "hello\n";
  EXPECT(error_of([&] { open_model(folder / "a.txt"); }).message.find("is text") !=
         std::string::npos);
}

TEST_CASE("checkpoint: nothing is replaced unless asked, and only a model's folder") {
  const test::TemporaryFolder folder;
  const ModelFile model = open_golden("hubert-group");
  const auto save = [&](const std::string& path, Existing existing) {
    save_model(path, format_of_name(path), model.config, model.tensors, existing);
  };
  for (const std::string& path : {folder / "m.gguf", folder / "hf"}) {
    save(path, Existing::refuse);
    const Error e = error_of([&] { save(path, Existing::refuse); });
    EXPECT(e.kind == Kind::usage);
    EXPECT(e.hint == "--force replaces it");
    save(path, Existing::replace);
  }
  std::filesystem::create_directory(folder / "home");
  std::ofstream(folder / "home/letter") << "dear\n";
  const Error e = error_of([&] { save(folder / "home", Existing::replace); });
  EXPECT(e.kind == Kind::usage);
  EXPECT(read_text(folder / "home/letter") == "dear\n");
}

TEST_CASE("checkpoint: initial values depend on seed and name alone") {
  const Config config = preset("hubert-tiny");
  TensorMap a, b, c;
  initialise_missing(a, backbone_tensors(config), 1);
  b.add_owned("enc.0.attn.q.weight", {128, 128}, std::vector<float>(128 * 128));
  initialise_missing(b, backbone_tensors(config), 1);
  initialise_missing(c, backbone_tensors(config), 2);
  const auto equal = [](const TensorMap& x, const TensorMap& y, const char* name) {
    const Tensor t = x.find(name);
    return std::memcmp(t.data, y.find(name).data, static_cast<size_t>(t.bytes())) == 0;
  };
  EXPECT(equal(a, b, "enc.1.ffn.up.weight"));
  EXPECT(!equal(a, c, "enc.1.ffn.up.weight"));
  EXPECT(b.find("enc.0.attn.q.weight").f32()[5] == 0);  // what is there stays
  const Tensor up = a.find("enc.1.ffn.up.weight");
  double squares = 0;
  for (int64_t i = 0; i < up.count(); ++i) squares += double{up.f32()[i]} * up.f32()[i];
  const double deviation = std::sqrt(squares / static_cast<double>(up.count()));
  // of 65536 draws: five standard deviations of their own deviation
  EXPECT(std::abs(deviation - 0.02) < 5 * 0.02 / std::sqrt(2.0 * 65536));
  EXPECT(a.find("enc.norm.weight").f32()[0] == 1);
  EXPECT(a.find("enc.0.ffn.up.bias").f32()[0] == 0);
}

TEST_CASE("checkpoint: the encoder alone, whatever is wrong with its head") {
  const test::TemporaryFolder folder;
  const std::string path = folder / "m";
  fs::copy(test::golden("models/hubert-ctc"), path, fs::copy_options::recursive);
  const ModelFile whole = open_model(path);
  fs::remove(path + "/vocab.json");
  EXPECT(error_of([&] { open_model(path); }).kind == Kind::input);
  const ModelFile encoder = open_model(path, Part::encoder);
  EXPECT(encoder.config.task.kind.empty());
  EXPECT(encoder.tensors.tensors.size() == whole.tensors.tensors.size() - 2);
  EXPECT(model_id(encoder.tensors) == model_id(whole.tensors));
  EXPECT(encoder.remarks == std::vector<std::string>{"lm_head.bias [32]: a head, not kept",
                                                     "lm_head.weight [32, 32]: a head, not kept"});
  const ModelFile pretraining = open_model(test::golden("models/wav2vec2-group"), Part::encoder);
  EXPECT(pretraining.remarks.size() == 7);
  EXPECT(pretraining.remarks[0] == "pretrain.proj.bias [12]: not part of the encoder, left out");
  EXPECT(!pretraining.tensors.tensors.contains("pretrain.vq.codebook"));
  const ModelFile distil =
      open_model(test::golden("models/distilhubert.safetensors"), Part::encoder);
  EXPECT(distil.config.states() == 3);
  save_model(folder / "d.gguf", "gguf", distil.config, distil.tensors);
  EXPECT(open_model(folder / "d.gguf").config.states() == 3);
}

TEST_CASE("checkpoint: a head alone, in GGUF and safetensors") {
  const test::TemporaryFolder folder;
  const std::string path = test::golden("models/wav2vec2-ctc");
  const ModelFile whole = open_model(path), head = open_model(path, Part::head);
  EXPECT(head.tensors.tensors.size() == 2);
  EXPECT(head.remarks.back() == "the encoder (35 tensors): left out");
  EXPECT(loaded_text(head, "x") ==
         "loaded 2/37 tensors, a linear ctc head of 30 units on wav2vec2, 32 wide");
  for (const char* name : {"head.gguf", "head.safetensors"}) {
    const std::string file = folder / name;
    save_model(file, format_of_name(file), head.config, head.tensors);
    for (const Part part : {Part::head, Part::any}) {
      const ModelFile back = open_model(file, part);
      EXPECT(back.tensors.tensors.size() == 2);
      EXPECT(back.config.task.units == whole.config.task.units);
      EXPECT(back.config.task.blank == 29);
      const Tensor a = back.tensors.find("task.out.weight"),
                   b = whole.tensors.find("task.out.weight");
      REQUIRE(a.shape == b.shape);
      EXPECT(std::memcmp(a.data, b.data, static_cast<size_t>(a.bytes())) == 0);
    }
    for (const Part part : {Part::model, Part::encoder}) {
      const Error e = error_of([&] { open_model(file, part); });
      EXPECT(e.kind == Kind::input);
      EXPECT(e.message == file + ": is a head alone (expected a model)");
    }
  }
  EXPECT(bytes(folder / "head.gguf") != bytes(folder / "head.safetensors"));
  for (const char* format : {"hf", "fairseq", "s3prl"})
    EXPECT(error_of([&] { save_model(folder / "x", format, head.config, head.tensors); }).message ==
           std::string(folder / "x") + ": only GGUF and safetensors hold a head alone");
  const std::string plain = test::golden("models/hubert-group");
  EXPECT(error_of([&] { open_model(plain, Part::head); }).message == plain + ": has no task head");
}
