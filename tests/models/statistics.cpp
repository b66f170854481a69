#include "models/statistics.h"

#include <cmath>
#include <filesystem>

#include "engine/rng.h"
#include "models/file_sums.h"
#include "models/initialise.h"
#include "tests/doctest.h"
#include "tests/golden.h"
#include "tests/temporary_folder.h"

using namespace sft;
using Names = std::vector<std::string>;

namespace {

// Small, with matrices large enough to be judged.
Config config() {
  Config c;
  c.layers = 2, c.width = 128, c.ffn = 160, c.heads = 4;
  c.conv_dims = {16, 16, 16, 96, 96, 96, 96};
  c.pos_kernel = 16, c.pos_groups = 8;
  return c;
}

class Numbers {
 public:
  explicit Numbers(std::string_view name) : draws_(7, 0, 0, fnv1a(name)) {}
  std::vector<double> normals(int64_t n) {
    std::vector<double> out(static_cast<size_t>(n));
    for (double& x : out) x = draws_.normal();
    return out;
  }
  std::vector<float> independent(int64_t n, double deviation, bool uniform) {
    std::vector<float> out(static_cast<size_t>(n));
    for (float& x : out)
      x = static_cast<float>(deviation * (uniform ? 2 * draws_.uniform() - 1 : draws_.normal()));
    return out;
  }

 private:
  Draws draws_;
};

// As training leaves them: rows and columns of unlike size.
std::vector<float> trained(const std::string& name, const Shape& shape) {
  Numbers draws(name);
  const int64_t rows = shape[0], columns = shape.count() / rows;
  const std::vector<double> row = draws.normals(rows), column = draws.normals(columns);
  std::vector<float> values = draws.independent(shape.count(), 0.05, false);
  for (int64_t i = 0; i < shape.count(); ++i)
    values[i] *= static_cast<float>(std::exp(0.3 * (row[i / columns] + column[i % columns])));
  return values;
}

ModelFile trained_model() {
  ModelFile model{.path = "m", .format = "gguf", .config = config()};
  for (const TensorSpec& spec : backbone_tensors(model.config)) {
    std::vector<float> values(static_cast<size_t>(spec.shape.count()));  // biases are 0
    if (!spec.name.ends_with(".bias")) values = trained(spec.name, spec.shape);
    model.tensors.add_owned(spec.name, spec.shape, values);
  }
  return model;
}

Names suspects(const ModelFile& model) {
  Names names;
  for (const Suspicion& s : suspicions(statistics(model))) names.push_back(s.tensor);
  return names;
}

std::string why(const ModelFile& model) {
  const std::vector<Suspicion> found = suspicions(statistics(model));
  REQUIRE(found.size() == 1);
  return found[0].why;
}

// The trained model with one tensor's values changed.
template <class Change>
ModelFile spoilt(const std::string& name, Change&& change) {
  ModelFile model = trained_model();
  const Shape shape = model.tensors.find(name).shape;
  std::vector<float> values = trained(name, shape);
  change(values);
  model.tensors.add_owned(name, shape, values);
  return model;
}

ModelFile redrawn(const std::string& name, double deviation, bool uniform = false) {
  return spoilt(name, [&](std::vector<float>& v) {
    v = Numbers("again" + name).independent(std::ssize(v), deviation, uniform);
  });
}

}  // namespace

TEST_CASE("statistics: of a tensor, by its finite values") {
  const std::vector<float> values = {-1, 0, 0, NAN, 3};
  const TensorStatistics s = statistics(Tensor(const_cast<float*>(values.data()), {5}, Dtype::f32));
  EXPECT(s.count == 5);
  EXPECT(s.zeros == 2);
  EXPECT(s.not_finite == 1);
  EXPECT(s.min == -1);
  EXPECT(s.max == 3);
  EXPECT(s.mean == 0.5);
  EXPECT(s.deviation == 1.5);
  EXPECT(s.structure == -1);
}

TEST_CASE("statistics: a trained model passes, in every type") {
  const ModelFile model = trained_model();
  EXPECT(suspects(model) == Names{});
  for (const NamedStatistics& t : statistics(model))
    EXPECT((t.values.structure >= 0) ==
           (t.shape.rank() > 1 && t.shape.count() >= 16384 && t.shape[0] >= 8));
  const test::TemporaryFolder folder;
  for (const Dtype type : {Dtype::q8_0, Dtype::bf16}) {
    const std::string path = folder / (std::string(name(type)) + ".gguf");
    save_model(path, "gguf", model.config, model.tensors, Existing::refuse, type);
    EXPECT(suspects(open_model(path)) == Names{});
  }
}

TEST_CASE("statistics: a matrix of random numbers is named, and no other") {
  for (const char* name :
       {"enc.1.ffn.up.weight", "enc.0.attn.k.weight", "pos_conv.0.weight_v", "conv.5.weight"}) {
    INFO(name);
    EXPECT(suspects(redrawn(name, 0.02)) == Names{name});
    EXPECT(suspects(redrawn(name, 0.1, /*uniform=*/true)) == Names{name});
  }
  EXPECT(why(redrawn("enc.1.ffn.up.weight", 0.02)).starts_with("random numbers, as far as rows"));
  // a bias has no rows, and a small matrix too little to tell
  EXPECT(suspects(redrawn("enc.1.ffn.up.bias", 0.02)) == Names{});
  EXPECT(suspects(redrawn("conv.1.weight", 0.1)) == Names{});
}

TEST_CASE("statistics: convolutions that hardly moved are named only among ones that did") {
  ModelFile model = redrawn("conv.5.weight", 0.1);
  const Shape shape = model.tensors.find("conv.6.weight").shape;
  model.tensors.add_owned("conv.6.weight", shape,
                          Numbers("6").independent(shape.count(), 0.1, false));
  EXPECT(suspects(model) == Names{});
}

TEST_CASE("statistics: zeros, constants and values that are not finite are named") {
  const auto says = [](const std::string& name, auto&& change, const std::string& expected) {
    INFO(name);
    const ModelFile model = spoilt(name, change);
    EXPECT(suspects(model) == Names{name});
    EXPECT(why(model) == expected);
  };
  const auto fill = [](float x) { return [x](std::vector<float>& v) { v.assign(v.size(), x); }; };
  says("enc.0.attn.q.weight", fill(0), "every value is 0");
  says("enc.norm.weight", fill(0), "every value is 0");
  says("enc.norm.weight", fill(1), "every value is 1");  // beside a bias of zeros
  says("pos_conv.0.weight_g", fill(0.5f), "every value is 0.5");
  says("conv.0.weight", fill(0), "every value is 0");
  says(
      "enc.0.attn.q.weight", [](auto& v) { std::fill(v.begin() + 100, v.end(), 0.0f); },
      "16284 of 16384 values are 0");
  says(
      "enc.0.attn.q.bias", [](auto& v) { v[1] = INFINITY, v[2] = NAN; }, "2 values are not finite");
  EXPECT(suspects(spoilt("mask_emb", fill(0))) == Names{});
  EXPECT(suspects(spoilt("enc.0.attn.q.bias", fill(0.5f))) == Names{});
  ModelFile norm = spoilt("enc.norm.weight", fill(1));
  norm.tensors.add_owned("enc.norm.bias", {128}, trained("b", {128}));
  EXPECT(suspects(norm) == Names{});
  ModelFile heads = trained_model();
  heads.tensors.add_owned("pretrain.label_emb", {504, 256},
                          Numbers("l").independent(504 * 256, 1, true));
  EXPECT(suspects(heads) == Names{});
  heads.tensors.add_owned("task.out.weight", {128, 128},
                          Numbers("t").independent(128 * 128, 0.1, true));
  EXPECT(suspects(heads) == Names{"task.out.weight"});
}

TEST_CASE("statistics: of a fresh model all layers are named") {
  ModelFile model{.path = "m", .format = "gguf", .config = config()};
  const std::vector<TensorSpec> specs = backbone_tensors(model.config);
  for (uint64_t seed = 0; seed < 20; ++seed) {
    TensorMap values;
    initialise_missing(values, specs, seed);
    model.tensors = values;
    const Names found = suspects(model);
    for (const TensorSpec& spec : specs) {
      const bool norm = spec.name.ends_with("norm.weight");
      const bool judged = spec.shape.rank() > 1 && spec.shape.count() >= 16384;
      const bool convolution = spec.name.starts_with("conv.");
      INFO(spec.name, " ", seed);
      EXPECT((std::find(found.begin(), found.end(), spec.name) != found.end()) ==
             (norm || (judged && !convolution)));
    }
  }
}

TEST_CASE("statistics: sums of all files that a model was read from") {
  const auto names = [](const std::string& path) {
    Names out;
    for (const auto& [file, sum] : file_sums(open_model(path).files)) {
      out.push_back(std::filesystem::path(file).filename().string());
      EXPECT(sum.size() == 64);
    }
    return out;
  };
  EXPECT(names(test::golden("models/hubert-layer")) ==
         Names{"model.safetensors.index.json", "model-00001-of-00002.safetensors",
               "model-00002-of-00002.safetensors", "config.json", "preprocessor_config.json"});
  EXPECT(names(test::golden("models/wav2vec2-ctc")) ==
         Names{"model.safetensors", "config.json", "preprocessor_config.json", "vocab.json",
               "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"});
  EXPECT(names(test::golden("torch/fairseq-hubert.pt")) == Names{"fairseq-hubert.pt"});
  EXPECT(names(test::golden("models/decoar2.safetensors")) == Names{"decoar2.safetensors"});
}
