// Checkpoints of fairseq and s3prl as torch.save wrote them (tests/golden/make/torch_files.py), of
// the same tiny models as the golden Hugging Face folders, so that the ids must agree.
#include "models/pytorch.h"

#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <set>

#include "engine/formats/torch_file.h"
#include "models/fairseq_config.h"
#include "models/names.h"
#include "tests/doctest.h"
#include "tests/golden.h"
#include "tests/temporary_folder.h"

using namespace sft;
using test::error_of;
using Names = std::vector<std::string>;

namespace {

std::string torch_golden(const std::string& name) { return test::golden("torch/" + name); }

ModelFile open_folder(const std::string& name) {
  return open_model(test::golden("models/" + name));
}

bool has_remark(const ModelFile& model, const std::string& part) {
  for (const std::string& remark : model.remarks)
    if (remark.find(part) != std::string::npos) return true;
  return false;
}

// What an encoder computes, without where it is from, the rates of its training, and its heads.
void expect_same_encoder(const ModelFile& a, const ModelFile& b) {
  EXPECT(a.config.arch == b.config.arch);
  EXPECT(a.config.layers == b.config.layers);
  EXPECT(a.config.heads == b.config.heads);
  EXPECT(a.config.pre_norm == b.config.pre_norm);
  EXPECT(a.config.conv_norm == b.config.conv_norm);
  EXPECT(a.config.conv_strides == b.config.conv_strides);
  EXPECT(a.config.normalize == b.config.normalize);
  EXPECT(model_id(a.tensors) == model_id(b.tensors));
}

// A state dict as a file: rename(name) is a tensor's new name, empty: left out.
template <class Rename>
std::string state_dict(const std::string& path, const std::string& golden, const char* key,
                       Rename&& rename) {
  const TorchFile file(torch_golden(golden));
  const PickleValue state = *file.root().find("model");
  std::vector<TensorInfo> infos;
  std::vector<TensorSpec> specs;
  for (size_t i = 0; i < state.size(); i += 2) {
    const std::string name = rename(std::string(state[i].text()));
    if (name.empty()) continue;
    infos.push_back(file.tensor(state[i + 1], name));
    specs.push_back({name, infos.back().shape, infos.back().dtype});
  }
  const TensorFile tensors = file.file(infos);
  TensorWriter writer =
      create_torch(path, TorchTree::dict({{key, TorchTree::tensors()}}), specs, Existing::replace);
  for (const TensorInfo& info : infos) {
    std::vector<std::byte> bytes(info.bytes);
    tensors.read(info, bytes);
    writer.append(bytes);
  }
  writer.finish();
  return path;
}

}  // namespace

TEST_CASE("pytorch: fairseq, pre-trained, with plain dicts") {
  const ModelFile model = open_model(torch_golden("fairseq-hubert.pt"));
  EXPECT(model.format == "fairseq");
  expect_same_encoder(model, open_folder("hubert-layer"));
  EXPECT(model.config.normalize_eps == 1e-5);
  EXPECT(model.config.pretrain.dim == 16);
  EXPECT(model.config.train.mask_prob == 0.65);
  EXPECT(model.config.train.dropout == 0);
  EXPECT(model.tensors.find("pretrain.label_emb").shape == Shape{14, 16});
  EXPECT(model.config.provenance.string("sft.source.format") == "fairseq");
  EXPECT(model.config.provenance.string("general.name") == "fairseq-hubert");
  EXPECT(model.remarks == Names{"not kept: optimizer_history, task_state, extra_state, "
                                "last_optimizer_state"});
  EXPECT(loaded_text(model, "x").starts_with("loaded 73/73 tensors, hubert, 2 layers of 48"));
}

TEST_CASE("pytorch: fairseq, fine-tuned, in the old layout, with Namespaces and a fused kernel") {
  const ModelFile model = open_model(torch_golden("fairseq-wav2vec2-ctc.pt"));
  const ModelFile folder = open_folder("wav2vec2-layer");
  EXPECT(model.config.arch == "wav2vec2");
  EXPECT(model.config.train.dropout == 0);  // "0.0" in the file
  EXPECT(model.config.train.mask_prob == 0.65);
  EXPECT(model.config.task.kind == "ctc");
  EXPECT(model.config.task.units == Names{"<s>", "<pad>", "</s>", "<unk>", "|", "E", "T"});
  EXPECT(model.tensors.find("task.out.weight").shape == Shape{7, 32});
  EXPECT(model.made == 1);
  EXPECT(has_remark(model, "pos_conv.0.weight: kept as weight_v"));
  EXPECT(has_remark(model, "not kept: "));
  // g v / |v| is the kernel it was
  const auto kernel = [](const ModelFile& m) {
    const Tensor v = m.tensors.find("pos_conv.0.weight_v");
    const float* g = m.tensors.find("pos_conv.0.weight_g").f32();
    const int64_t taps = v.shape.back();
    std::vector<double> squares(taps), out;
    for (int64_t i = 0; i < v.count(); ++i) squares[i % taps] += double{v.f32()[i]} * v.f32()[i];
    for (int64_t i = 0; i < v.count(); ++i)
      out.push_back(g[i % taps] * double{v.f32()[i]} / std::sqrt(squares[i % taps]));
    return out;
  };
  const std::vector<double> fused = kernel(model), split = kernel(folder);
  double largest = 0, worst = 0;
  for (double x : split) largest = std::max(largest, std::abs(x));
  for (size_t i = 0; i < split.size(); ++i) worst = std::max(worst, std::abs(fused[i] - split[i]));
  EXPECT(worst <= 4 * 0x1p-24 * largest);  // PyTorch rounds g / |v|, and its product with v
  // everything else is bit by bit the folder's
  for (const auto& [name, tensor] : folder.tensors.tensors) {
    if (name.starts_with("pos_conv.0.weight")) continue;
    INFO(name);
    const Tensor other = model.tensors.find(name);
    REQUIRE(other.shape == tensor.shape);
    EXPECT(std::memcmp(other.data, tensor.data, static_cast<size_t>(tensor.bytes())) == 0);
  }
}

TEST_CASE("pytorch: fairseq with omegaconf's objects, s3prl, and shards of pytorch_model.bin") {
  const ModelFile omegaconf = open_model(torch_golden("fairseq-omegaconf.pt"));
  expect_same_encoder(omegaconf, open_folder("wav2vec2-group"));
  EXPECT(omegaconf.tensors.find("pretrain.vq.codebook").shape.rank() == 2);
  const ModelFile s3prl = open_model(torch_golden("s3prl-hubert.pt"));
  EXPECT(s3prl.format == "s3prl");
  expect_same_encoder(s3prl, open_folder("hubert-group"));
  const ModelFile bin = open_model(torch_golden("hubert-bin"));
  EXPECT(bin.format == "hf");
  expect_same_encoder(bin, open_folder("hubert-layer"));
  EXPECT(bin.in_file == 70);
}

namespace {

void expect_same_tensors(const TensorMap& a, const TensorMap& b) {
  EXPECT(a.tensors.size() == b.tensors.size());
  for (const auto& [name, tensor] : a.tensors) {
    INFO(name);
    const Tensor other = b.find(name);
    REQUIRE(other.shape == tensor.shape);
    EXPECT(std::memcmp(other.data, tensor.data, static_cast<size_t>(tensor.bytes())) == 0);
  }
}

// A golden model and what is read back from it, in a format of PyTorch.
struct Written {
  const char* model;
  const char* fairseq;  // the format that is read; null: fairseq has no such model
  const char* s3prl;
};
constexpr Written kWritten[] = {
    {"hubert-group", "fairseq", "s3prl"},
    {"hubert-layer", "fairseq", "s3prl"},
    {"wav2vec2-group", "fairseq", "s3prl"},
    {"wav2vec2-layer", "fairseq", "s3prl"},
    {"data2vec", "fairseq", "s3prl"},
    {"unispeechsat-layer", "unilm", "unilm"},
    {"wavlm-group", "unilm", "unilm"},
    {"wavlm-layer", "unilm", "unilm"},
    {"distilhubert.safetensors", nullptr, "s3prl"},
    {"decoar2.safetensors", nullptr, "state-dict"},
};

void expect_round_trip(const ModelFile& model, const std::string& format, const char* read_as) {
  const test::TemporaryFolder folder;
  const std::string path = folder / "m.pt", again = folder / "again.pt";
  if (!read_as) {
    const Error e = error_of([&] { save_model(path, format, model.config, model.tensors); });
    EXPECT(e.kind == Kind::usage);
    EXPECT(e.message == path + ": fairseq has no " + model.config.arch + " model");
    return;
  }
  save_model(path, format, model.config, model.tensors);
  const ModelFile back = open_model(path);
  EXPECT(back.format == read_as);
  expect_same_tensors(model.tensors, back.tensors);
  Config said = back.config, meant = model.config;
  for (Config* c : {&said, &meant}) {
    c->provenance.set("general.size_label", std::string());
    c->provenance.set("general.name", std::string());
    for (const char* key : {"sft.source.format", "sft.source.name"})
      if (!model.config.provenance.has(key)) c->provenance.set(key, std::string());
  }
  EXPECT(metadata_from_config(said) == metadata_from_config(meant));
  save_model(path, format, back.config, back.tensors, Existing::replace);
  const ModelFile twice = open_model(path);
  save_model(again, format, twice.config, twice.tensors);
  EXPECT(read_text(path, 64 << 20) == read_text(again, 64 << 20));
}

}  // namespace

// decoar2.pt: tensor i of the file holds ((37 e + 11 i) mod 101) / 64 - 1/2 at element e.
TEST_CASE("pytorch: the other families, as torch.save keeps them") {
  const std::pair<const char*, const char*> files[] = {
      {"unilm-wavlm-group.pt", "wavlm-group"},
      {"unilm-wavlm-layer.pt", "wavlm-layer"},
      {"unilm-unispeechsat.pt", "unispeechsat-layer"},
      {"fairseq-data2vec.pt", "data2vec"},
      {"s3prl-distilhubert.ckpt", "distilhubert.safetensors"}};
  for (const auto& [file, folder] : files) {
    INFO(file);
    const ModelFile model = open_model(torch_golden(file)), golden = open_folder(folder);
    expect_same_encoder(model, golden);
    EXPECT(model.config.pos_kernel == golden.config.pos_kernel);
    EXPECT(model.config.pos_depth == golden.config.pos_depth);
    EXPECT(model.config.rel_buckets == golden.config.rel_buckets);
    EXPECT(model.config.rel_max_distance == golden.config.rel_max_distance);
    EXPECT(model.config.pretrain.distill == golden.config.pretrain.distill);
    for (const auto& [name, tensor] : golden.tensors.tensors) {
      INFO(name);
      const Tensor other = model.tensors.find(name);
      REQUIRE(other.shape == tensor.shape);
      EXPECT(std::memcmp(other.data, tensor.data, static_cast<size_t>(tensor.bytes())) == 0);
    }
  }
  EXPECT(open_model(torch_golden("unilm-wavlm-group.pt")).format == "unilm");
  const ModelFile data2vec = open_model(torch_golden("fairseq-data2vec.pt"));
  EXPECT(data2vec.tensors.find("pretrain.proj.weight").shape == Shape{32, 32});
  EXPECT(data2vec.remarks == Names{"_ema: not a tensor, not kept"});
  const ModelFile distilled = open_model(torch_golden("s3prl-distilhubert.ckpt"));
  EXPECT(distilled.format == "s3prl");
  EXPECT(distilled.config.train.feature_grad_mult == 0.1);
  EXPECT(distilled.remarks == Names{"not kept: Optimizer, Step, Args, Scheduler"});
}

namespace {

std::map<std::string, Shape> shapes_of(const std::string& path, std::string_view key) {
  const TorchFile file(path);
  const PickleValue state = *file.root().find(key);
  std::map<std::string, Shape> shapes;
  for (size_t i = 0; i + 1 < state.size(); i += 2)
    if (TorchFile::is_tensor(state[i + 1]))
      shapes[std::string(state[i].text())] = file.tensor(state[i + 1], "x").shape;
  return shapes;
}

}  // namespace

TEST_CASE("pytorch: what we write has the names and shapes of the program's own file") {
  const test::TemporaryFolder folder;
  struct Pair {
    const char *theirs, *model, *format, *key;
    std::set<std::string> heads;  // that only their file has
  };
  const Pair pairs[] = {
      {"unilm-wavlm-group.pt", "wavlm-group", "fairseq", "model", {}},
      {"unilm-wavlm-layer.pt", "wavlm-layer", "s3prl", "model", {}},
      {"unilm-unispeechsat.pt", "unispeechsat-layer", "fairseq", "model", {}},
      {"fairseq-omegaconf.pt", "wav2vec2-group", "fairseq", "model", {}},
      {"fairseq-data2vec.pt",
       "data2vec",
       "fairseq",
       "model",
       {"final_proj.weight", "final_proj.bias"}},
      {"fairseq-hubert.pt",
       "hubert-layer",
       "fairseq",
       "model",
       {"final_proj.weight", "final_proj.bias", "label_embs_concat"}},
      {"s3prl-distilhubert.ckpt", "distilhubert.safetensors", "s3prl", "Distiller", {}}};
  for (const Pair& pair : pairs) {
    INFO(pair.theirs);
    const ModelFile model = open_folder(pair.model);
    save_model(folder / "m.pt", pair.format, model.config, model.tensors, Existing::replace);
    auto wanted = shapes_of(torch_golden(pair.theirs), pair.key);
    for (const std::string& head : pair.heads) EXPECT(wanted.erase(head) == 1);
    EXPECT(shapes_of(folder / "m.pt", pair.key) == wanted);
  }
}

// Its loading refuses a task with a key it does not know, or without data.
TEST_CASE("pytorch: the task that fairseq makes of what we write") {
  const test::TemporaryFolder folder;
  for (const char* name : {"hubert-group", "wav2vec2-group", "data2vec"}) {
    INFO(name);
    const ModelFile model = open_folder(name);
    save_model(folder / "m.pt", "fairseq", model.config, model.tensors, Existing::replace);
    const TorchFile file(folder / "m.pt");
    const PickleValue task = *file.root().find("cfg")->find("task");
    const bool hubert = model.config.arch == "hubert";
    REQUIRE(task.find("data").has_value());
    EXPECT(task.find("data")->is(PickleType::text));
    EXPECT(task.find("label_rate").has_value() == hubert);
    EXPECT(task.find("labels").has_value() == hubert);
    EXPECT(task.find("normalize")->integer() == model.config.normalize);
  }
}

TEST_CASE("pytorch: DeCoAR 2.0 follows its shapes; what is not its encoder is named") {
  const ModelFile model = open_model(torch_golden("decoar2.pt"));
  EXPECT(model.config.arch == "decoar2");
  EXPECT(model.config.layers == 1);
  EXPECT(model.config.heads == 1);
  EXPECT(model.config.ffn == 32);
  EXPECT(model.config.pos_kernel == 4);
  EXPECT(model.config.pos_groups == 4);
  EXPECT(model.config.conv_norm == "none");
  EXPECT(!model.config.pre_norm);
  EXPECT(!model.config.normalize);
  EXPECT(has_remark(model, "mask_vector [64]: not part of the encoder, not kept"));
  EXPECT(has_remark(model, "quantizer.weight_proj.weight [4, 64]: not part of the encoder"));
  EXPECT(has_remark(model, "not kept: epoch"));
  const TorchFile file(torch_golden("decoar2.pt"));
  const PickleValue state = *file.root().find("model");
  const std::pair<const char*, const char*> names[] = {
      {"feat_proj.weight", "post_extract_proj.weight"},
      {"pos_conv.0.weight_g", "encoder.pos_conv.0.weight_g"},
      {"pos_conv.0.weight_v", "encoder.pos_conv.0.weight_v"},
      {"pos_conv.0.bias", "encoder.pos_conv.0.bias"},
      {"enc.norm.weight", "encoder.layer_norm.weight"},
      {"enc.0.attn.k.weight", "encoder.layers.0.self_attn.k_proj.weight"},
      {"enc.0.attn_norm.bias", "encoder.layers.0.self_attn_layer_norm.bias"},
      {"enc.0.ffn.down.weight", "encoder.layers.0.fc2.weight"},
      {"enc.0.ffn_norm.weight", "encoder.layers.0.final_layer_norm.weight"}};
  for (const auto& [ours, theirs] : names) {
    INFO(ours);
    const Tensor tensor = model.tensors.find(ours);
    int64_t at = 0;
    while (state[static_cast<size_t>(2 * at)].text() != theirs) ++at;
    int64_t wrong = 0;
    for (int64_t e = 0; e < tensor.count(); ++e)
      wrong += tensor.f32()[e] != static_cast<float>((37 * e + 11 * at) % 101) / 64 - 0.5f;
    EXPECT(wrong == 0);
  }
}

TEST_CASE("pytorch: what a file is, is decided by its content, whatever it is called") {
  const test::TemporaryFolder folder;
  const std::string ours = folder / "m.gguf";
  const ModelFile model = open_folder("hubert-layer");
  save_model(ours, "gguf", model.config, model.tensors);
  const std::pair<std::string, const char*> files[] = {
      {ours, "gguf"},
      {test::golden("models/distilhubert.safetensors"), "safetensors"},
      {torch_golden("fairseq-hubert.pt"), "fairseq"},
      {torch_golden("unilm-wavlm-layer.pt"), "unilm"}};
  for (const auto& [file, format] : files)
    for (const char* name : {"x.gguf", "x.safetensors", "x.bin", "x.pt", "x"}) {
      INFO(file, " as ", name);
      std::filesystem::copy_file(file, folder / name,
                                 std::filesystem::copy_options::overwrite_existing);
      EXPECT(open_model(folder / name).format == format);
    }
}

TEST_CASE("pytorch: a configuration that is not computed here is refused by its key") {
  const test::TemporaryFolder folder;
  using Tree = TorchTree;
  const auto refuses = [&](const Tree& root, const std::string& part) {
    const std::string path = folder / "m.pt";
    TensorWriter writer =
        create_torch(path, root, {{"post_extract_proj.weight", {1, 1}}}, Existing::replace);
    writer.append(std::vector<std::byte>(4));
    writer.finish();
    const Error e = error_of([&] { open_model(path); });
    EXPECT(e.kind == Kind::input);
    EXPECT_MESSAGE(e.message == path + ": " + part, e.message);
  };
  const auto distiller = [](std::vector<std::pair<std::string, Tree>> keys) {
    return Tree::dict({{"Config", Tree::dict({{"distiller", Tree::dict(std::move(keys))}})},
                       {"Distiller", Tree::tensors()}});
  };
  refuses(distiller({{"task_emb_type", Tree::text("add")}}),
          "task_emb_type is add (expected expand-last or self-hidden or none)");
  refuses(distiller({{"attention_type", Tree::text("sparse")}}),
          "attention_type is sparse (expected original)");
  refuses(distiller({{"n_tasks", Tree::integer(2)}, {"pred_layer_id", Tree::list({})}}),
          "n_tasks is 2 (expected 1 to 64, as many as pred_layer_id has)");
  refuses(distiller(
              {{"n_tasks", Tree::integer(1)}, {"pred_layer_id", Tree::list({Tree::integer(-1)})}}),
          "pred_layer_id has an element that is no layer (expected 0 to 64)");
  const auto fairseq = [](const char* name, int64_t depth) {
    const Tree model =
        Tree::dict({{"_name", Tree::text(name)}, {"pos_conv_depth", Tree::integer(depth)}});
    return Tree::dict({{"cfg", Tree::dict({{"model", model}})}, {"model", Tree::tensors()}});
  };
  refuses(fairseq("hubert", 5), "pos_conv_depth is 5 (expected 1)");
  refuses(fairseq("data2vec_audio", 1), "pos_conv_depth is 1 (expected 2 to 16)");
}

TEST_CASE("pytorch: written as fairseq and s3prl, and back, nothing is lost") {
  for (const Written& written : kWritten) {
    const ModelFile model = open_folder(written.model);
    for (const char* format : {"fairseq", "s3prl"}) {
      INFO(written.model, " ", format);
      expect_round_trip(model, format, *format == 'f' ? written.fairseq : written.s3prl);
    }
  }
}

TEST_CASE("pytorch: s3prl's heads are made, said, and not kept when read back") {
  const test::TemporaryFolder folder;
  const ModelFile model = open_folder("hubert-group");
  const auto remarks = save_model(folder / "m.pt", "s3prl", model.config, model.tensors);
  REQUIRE(remarks.size() == 3);
  EXPECT(remarks[0].starts_with("final_proj.weight [256, 32]: made at random"));
  EXPECT(remarks[2].starts_with("label_embs_concat [504, 256]: made at random"));
  const ModelFile back = open_model(folder / "m.pt");
  EXPECT(has_remark(back, "pretrain.label_emb: made for its reader when it was written, not kept"));
  EXPECT(back.tensors.find("pretrain.label_emb").data == nullptr);
  const TorchFile file(folder / "m.pt");
  EXPECT((*file.root().find("dictionaries_symbols"))[0].size() == 504);
  EXPECT(save_model(folder / "f.pt", "fairseq", model.config, model.tensors).empty());
  // s3prl removes data2vec's _ema without looking whether it is there
  const ModelFile data2vec = open_folder("data2vec");
  save_model(folder / "d.pt", "s3prl", data2vec.config, data2vec.tensors);
  const TorchFile written(folder / "d.pt");
  const PickleValue weights = *written.root().find("model_weight");
  REQUIRE(weights.find("_ema").has_value());
  EXPECT(weights.find("_ema")->is(PickleType::dict));
  ModelFile head = model;
  head.tensors.add_owned("task.out.bias", {2}, {0, 0});
  EXPECT(save_model(folder / "g.pt", "fairseq", model.config, head.tensors) ==
         Names{"task.out.bias [2]: fairseq has no place for it, dropped"});
}

TEST_CASE("pytorch: downstream checkpoints, Lightning and bare state dicts follow their shapes") {
  const test::TemporaryFolder folder;
  const std::string path = folder / "m.ckpt";
  const auto keep = [](const std::string& name) { return name; };
  // heads of 48 / 2: not told by the shapes of so small a model
  state_dict(path, "fairseq-hubert.pt", "state_dict", keep);
  EXPECT(error_of([&] { open_model(path); }).message ==
         path + ": width 48, and nothing that tells its heads (expected a multiple of 64)");
  // Upstream needs its Args; a head alone is no model
  state_dict(path, "fairseq-hubert.pt", "Downstream", keep);
  EXPECT(error_of([&] { open_model(path); }).message.find("without its Upstream") !=
         std::string::npos);

  Config c;
  c.width = 64, c.heads = 1, c.ffn = 96, c.layers = 1, c.conv_dims.assign(7, 16);
  c.pos_kernel = 16, c.pos_groups = 4, c.pretrain.dim = 16;
  for (const char* norm : {"group", "layer"}) {
    c.conv_norm = norm, c.pre_norm = c.normalize = c.conv_norm == "layer";
    TensorMap tensors;
    for (const TensorSpec& spec : backbone_tensors(c))
      tensors.add_owned(spec.name, spec.shape,
                        std::vector<float>(static_cast<size_t>(spec.shape.count()), 0.5f));
    save_model(folder / "full.pt", "fairseq", c, tensors, Existing::replace);
    const TorchFile full(folder / "full.pt");
    const PickleValue state = *full.root().find("model");
    for (const auto& [prefix, key] :
         {std::pair("encoder.model.", "state_dict"), {"", "state_dict"}}) {
      std::vector<TensorInfo> infos;
      std::vector<TensorSpec> specs;
      for (size_t i = 0; i < state.size(); i += 2) {
        infos.push_back(full.tensor(state[i + 1], prefix + std::string(state[i].text())));
        specs.push_back({infos.back().name, infos.back().shape});
      }
      specs.push_back({"pred_head.weight", {2}});
      TensorWriter writer = create_torch(path, TorchTree::dict({{key, TorchTree::tensors()}}),
                                         specs, Existing::replace);
      const TensorFile file = full.file(infos);
      for (const TensorInfo& info : infos) {
        std::vector<std::byte> bytes(info.bytes);
        file.read(info, bytes);
        writer.append(bytes);
      }
      writer.append(std::vector<std::byte>(8));
      writer.finish();
      const ModelFile model = open_model(path);
      EXPECT(model.format == "lightning");
      EXPECT(model_id(model.tensors) == model_id(tensors));
      EXPECT(model.config.conv_norm == norm);
      EXPECT(model.config.pre_norm == c.pre_norm);
      EXPECT(model.config.normalize == c.normalize);
      EXPECT(model.config.heads == 1);
      EXPECT(model.config.pos_groups == 4);
      EXPECT(has_remark(model, "no configuration; its shapes give 1 heads"));
      EXPECT(has_remark(model, "pred_head.weight [2]: not part of the encoder, not kept"));
    }
  }
}

TEST_CASE(
    "pytorch: the family of a fine-tuned s3prl model, by its tensors or its upstream's name") {
  struct Upstream {
    const char *arch, *name;
    bool pre_norm, normalize;
  };
  const Upstream upstreams[] = {{"hubert", "hubert_large_ll60k", true, true},
                                {"wav2vec2", "hf_wav2vec2_custom", true, true},
                                {"unispeechsat", "unispeech_sat_large", true, true},
                                {"wavlm", "any", true, true},
                                {"data2vecaudio", "any", false, true},
                                {"decoar2", "any", false, false}};
  const test::TemporaryFolder folder;
  for (const Upstream& upstream : upstreams) {
    INFO(upstream.arch);
    Config c = default_config(upstream.arch, "x");
    c.width = 64, c.heads = 1, c.ffn = 96, c.layers = 1, c.pos_groups = 4;
    if (!c.log_mel()) c.conv_dims.assign(7, 16), c.conv_norm = "layer", c.conv_bias = true;
    c.pre_norm = upstream.pre_norm, c.normalize = upstream.normalize;
    TensorMap tensors;
    for (const TensorSpec& spec : backbone_tensors(c))
      tensors.add_owned(spec.name, spec.shape,
                        std::vector<float>(static_cast<size_t>(spec.shape.count()), 0.5f));
    save_model(folder / "m.pt", "s3prl", c, tensors, Existing::replace);
    const TorchFile full(folder / "m.pt");
    const auto converted = full.root().find("model_weight");
    const PickleValue state = converted ? *converted : *full.root().find("model");
    std::vector<TensorInfo> infos;
    std::vector<TensorSpec> specs;
    for (size_t i = 0; i < state.size(); i += 2) {
      const std::string name(state[i].text());
      if (!TorchFile::is_tensor(state[i + 1]) || name.starts_with("quantizer.") ||
          name.starts_with("final_proj.") || name.starts_with("project_q.") ||
          name == "label_embs_concat")
        continue;
      infos.push_back(full.tensor(state[i + 1], "model." + name));
      specs.push_back({infos.back().name, infos.back().shape});
    }
    const TorchTree args = TorchTree::dict({{"upstream", TorchTree::text(upstream.name)}});
    TensorWriter writer = create_torch(
        folder / "m.ckpt", TorchTree::dict({{"Args", args}, {"Upstream", TorchTree::tensors()}}),
        specs, Existing::replace);
    const TensorFile file = full.file(infos);
    for (const TensorInfo& info : infos) {
      std::vector<std::byte> bytes(info.bytes);
      file.read(info, bytes);
      writer.append(bytes);
    }
    writer.finish();
    const ModelFile model = open_model(folder / "m.ckpt");
    EXPECT(model.format == "s3prl-downstream");
    EXPECT(model.config.arch == upstream.arch);
    EXPECT(model.config.pre_norm == upstream.pre_norm);
    EXPECT(model.config.normalize == upstream.normalize);
    EXPECT(model.config.pos_depth == c.pos_depth);
    EXPECT(model_id(model.tensors) == model_id(tensors));
  }
}

TEST_CASE("pytorch: missing, doubled and unknown tensors, and two encoders") {
  const test::TemporaryFolder folder;
  const std::string path = folder / "m.pt";
  const auto refuses = [&](auto&& rename, const std::string& part) {
    state_dict(path, "fairseq-omegaconf.pt", "state_dict", rename);
    const Error e = error_of([&] { open_model(path); });
    EXPECT(e.kind == Kind::input);
    EXPECT_MESSAGE(e.message.find(part) != std::string::npos, e.message);
  };
  refuses([](const std::string& name) { return name == "post_extract_proj.weight" ? "" : name; },
          "0 tensors end with post_extract_proj.weight");
  refuses(
      [](const std::string& name) {
        return name == "mask_emb" ? "teacher.post_extract_proj.weight" : name;
      },
      "2 tensors end with post_extract_proj.weight");
  refuses(
      [](const std::string& name) { return name == "mask_emb" ? "encoder.adapter.bias" : name; },
      "tensor encoder.adapter.bias [32] is not one of a wav2vec2 model");
}

TEST_CASE("pytorch: the expression of convolutions is read, not evaluated") {
  const ConvLayers layers =
      parse_conv_layers(" [(512, 10, 5)] + [(512,3,2)] * 4 + [(512,2,2)] + [(512, 2, 2)]", "x");
  EXPECT(layers.dims == std::vector<int64_t>(7, 512));
  EXPECT(layers.kernels == std::vector<int64_t>{10, 3, 3, 3, 3, 2, 2});
  EXPECT(layers.strides == std::vector<int64_t>{5, 2, 2, 2, 2, 2, 2});
  for (const char* text :
       {"", "[", "[]", "[()]", "[(1,2)]", "[(1,2,3)", "[(1,2,3)]*0", "[(1,2,3)]*1000",
        "[(1,2,3)] * [(1,2,3)]", "[(1,2,3)]+", "[(0,2,3)]", "[(-1,2,3)]", "[(1,2,3)];x",
        "__import__('os').system('true')", "[(99999999999999999999,2,3)]", "[(1.5,2,3)]"}) {
    INFO(std::string(text));
    const Error e = error_of([&] { parse_conv_layers(text, "x.pt"); });
    EXPECT(e.kind == Kind::input);
    EXPECT(e.message.find("x.pt: conv_feature_layers is ") == 0);
  }
  Config c;
  EXPECT(parse_conv_layers(conv_layers_text(c), "x").kernels == c.conv_kernels);
}

TEST_CASE("pytorch: a linear CTC head as fairseq fine-tunes it, and back") {
  const test::TemporaryFolder folder;
  for (const std::string& from :
       {test::golden("models/hubert-ctc"), torch_golden("fairseq-wav2vec2-ctc.pt")}) {
    INFO(from);
    const ModelFile model = open_model(from);
    const std::string path = folder / "m.pt", dictionary = folder / "dict.ltr.txt";
    const auto remarks =
        save_model(path, "fairseq", model.config, model.tensors, Existing::replace);
    REQUIRE(!remarks.empty());
    EXPECT(remarks.back() == dictionary + ": the units of its head, for fairseq");
    std::string lines;
    for (size_t id = 4; id < model.config.task.units.size(); ++id)
      lines += model.config.task.units[id] + " 1\n";
    EXPECT(read_text(dictionary) == lines);
    std::filesystem::remove(dictionary);  // the file has its own units too
    const ModelFile back = open_model(path);
    EXPECT(back.config.task.units == model.config.task.units);
    EXPECT(back.config.task.blank == 0);
    REQUIRE(back.tensors.tensors.size() == model.tensors.tensors.size());
    for (const auto& [name, tensor] : model.tensors.tensors) {
      const Tensor other = back.tensors.find(name);
      REQUIRE(other.shape == tensor.shape);
      EXPECT(std::memcmp(other.data, tensor.data, static_cast<size_t>(tensor.bytes())) == 0);
    }
    const std::string again = folder / "again.pt";
    save_model(again, "fairseq", back.config, back.tensors, Existing::replace);
    EXPECT(read_text(path, 64 << 20) == read_text(again, 64 << 20));
    const TorchFile file(path);
    const PickleValue cfg = *file.root().find("cfg");
    EXPECT(cfg.find("model")->find("_name")->text() ==
           (model.config.arch == "hubert" ? "hubert_ctc" : "wav2vec_ctc"));
    EXPECT(cfg.find("task")->find("_name")->text() == "audio_finetuning");
    EXPECT(file.root().find("model")->find("w2v_encoder.w2v_model.layer_norm.weight"));
    EXPECT(file.root().find("model")->find("w2v_encoder.proj.bias"));
    EXPECT(open_model(path, Part::encoder).config.task.kind.empty());
  }
  // another model's dictionary is not replaced without being asked
  const ModelFile model = open_model(test::golden("models/hubert-ctc"));
  write_text(folder / "dict.ltr.txt", "a 1\n", Existing::replace);
  const Error e =
      error_of([&] { save_model(folder / "n.pt", "fairseq", model.config, model.tensors); });
  EXPECT(e.kind == Kind::usage);
  EXPECT(e.message == std::string(folder / "dict.ltr.txt") + ": exists already");
  EXPECT(!std::filesystem::exists(folder / "n.pt"));
}

TEST_CASE("pytorch: CTC heads that fairseq does not hold are dropped by name") {
  const test::TemporaryFolder folder;
  const auto drops = [&](const ModelFile& model, const char* format, const std::string& why) {
    const auto remarks =
        save_model(folder / "m.pt", format, model.config, model.tensors, Existing::replace);
    const auto said = std::find_if(remarks.begin(), remarks.end(), [](const std::string& remark) {
      return remark.starts_with("task.out.weight [");
    });
    REQUIRE(said != remarks.end());
    EXPECT_MESSAGE(said->ends_with(why), *said);
    EXPECT(open_model(folder / "m.pt").config.task.kind.empty());
    EXPECT(!std::filesystem::exists(folder / "dict.ltr.txt"));
  };
  drops(open_folder("wav2vec2-ctc"), "fairseq",
        ": fairseq has blank 0 and four special units first, then others, each once, dropped");
  drops(open_folder("wavlm-ctc"), "fairseq",
        ": fairseq has no wavlm model with a CTC head, dropped");
  drops(open_folder("hubert-ctc"), "s3prl", ": s3prl has no place for it, dropped");
  ModelFile weighted = open_folder("hubert-ctc");
  weighted.tensors.add_owned("task.layer_weights", {2}, {1, 1});
  drops(weighted, "fairseq", ": fairseq holds a linear CTC head alone, dropped");
}

TEST_CASE("pytorch: the dictionary of a fine-tuned model, beside it") {
  const test::TemporaryFolder folder;
  const std::string path = folder / "m.pt", dictionary = folder / "dict.ltr.txt";
  const ModelFile whole = open_folder("hubert-ctc");
  save_model(folder / "ours.pt", "fairseq", whole.config, whole.tensors);
  std::filesystem::remove(dictionary);
  const TorchFile ours(folder / "ours.pt");  // the same without what we say of ourselves
  const PickleValue state = *ours.root().find("model");
  std::vector<TensorInfo> infos;
  std::vector<TensorSpec> specs;
  for (size_t i = 0; i < state.size(); i += 2) {
    infos.push_back(ours.tensor(state[i + 1], std::string(state[i].text())));
    specs.push_back({infos.back().name, infos.back().shape});
  }
  const TensorFile tensors = ours.file(infos);
  TensorWriter writer =
      create_torch(path,
                   TorchTree::dict({{"cfg", fine_tuned_settings(whole.config, "hubert_ctc")},
                                    {"model", TorchTree::tensors()}}),
                   specs);
  for (const TensorInfo& info : infos) {
    std::vector<std::byte> bytes(info.bytes);
    tensors.read(info, bytes);
    writer.append(bytes);
  }
  writer.finish();

  const ModelFile without = open_model(path);
  EXPECT(without.config.task.kind.empty());
  EXPECT(has_remark(without,
                    "w2v_encoder.proj.weight [32, 32]: a CTC head without its dictionary "
                    "(expected in the file, or dict.ltr.txt beside it), not kept"));
  std::string lines;
  for (size_t id = 4; id < 32; ++id) lines += whole.config.task.units[id] + " 12\n";
  write_text(dictionary, lines);
  const ModelFile model = open_model(path);
  EXPECT(model.config.task.units[0] == "<s>");
  EXPECT(model.config.task.units[4] == "|");
  EXPECT(model.config.task.units[31] == "Z");
  EXPECT(model.config.task.blank == 0);
  EXPECT(model.tensors.find("task.out.bias").f32()[7] ==
         whole.tensors.find("task.out.bias").f32()[7]);
  const auto refuses = [&](const std::string& text, const std::string& part) {
    write_text(dictionary, text, Existing::replace);
    const Error e = error_of([&] { open_model(path); });
    EXPECT(e.kind == Kind::input);
    EXPECT_MESSAGE(e.message.find(part) != std::string::npos, e.message);
    EXPECT(open_model(path, Part::encoder).config.task.kind.empty());
  };
  refuses("a 1\nb 2\n",
          "m.pt: the dictionary has 6 symbols, but w2v_encoder.proj.weight is [32, 32]");
  refuses("a 1\nb\n", "dict.ltr.txt:2: 'b' (expected SYMBOL COUNT)");
  refuses("a 1\n\nb 1\n", "dict.ltr.txt:2: '' (expected SYMBOL COUNT)");
  refuses("a x\n", "dict.ltr.txt:1: 'a x' (expected");
  refuses("a b 1\n", "dict.ltr.txt:1: 'a b 1' (expected");
  refuses("a 1\nb 1 #fairseq:overwrite\na 2\n", "dict.ltr.txt:3: a is there twice");
  refuses("<s> 1\n", "dict.ltr.txt:1: <s> is there twice");
}
