// Checkpoints of fairseq and s3prl as torch.save wrote them (tests/golden/make/torch_files.py), of
// the same tiny models as the golden Hugging Face folders, so that the ids must agree.
#include "models/pytorch.h"

#include <cmath>
#include <cstring>
#include <filesystem>

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

TEST_CASE("pytorch: written as fairseq and s3prl, and back, nothing is lost") {
  for (const char* name : {"hubert-group", "hubert-layer", "wav2vec2-group", "wav2vec2-layer",
                           "unispeechsat-layer", "wavlm-group", "wavlm-layer"}) {
    const test::TemporaryFolder folder;
    const ModelFile model = open_folder(name);
    const bool unilm = model.config.arch == "wavlm" || model.config.arch == "unispeechsat";
    for (const char* format : {"fairseq", "s3prl"}) {
      if (unilm && std::string(format) == "s3prl") {
        EXPECT(error_of([&] {
                 save_model(folder / "x.pt", format, model.config, model.tensors);
               }).kind == Kind::usage);
        continue;
      }
      INFO(name, " ", format);
      const std::string path = folder / (std::string(format) + ".pt");
      save_model(path, format, model.config, model.tensors);
      const ModelFile back = open_model(path);
      EXPECT(back.format == (unilm ? "unilm" : format));
      EXPECT(back.tensors.tensors.size() == model.tensors.tensors.size());
      for (const auto& [tensor_name, tensor] : model.tensors.tensors) {
        const Tensor other = back.tensors.find(tensor_name);
        REQUIRE(other.shape == tensor.shape);
        EXPECT(std::memcmp(other.data, tensor.data, static_cast<size_t>(tensor.bytes())) == 0);
      }
      Config said = back.config, meant = model.config;
      for (Config* c : {&said, &meant}) c->provenance.set("general.size_label", std::string());
      EXPECT(metadata_from_config(said) == metadata_from_config(meant));
      const std::string again = folder / (std::string(format) + "-again.pt");
      save_model(again, format, back.config, back.tensors);
      EXPECT(read_text(path, 64 << 20) == read_text(again, 64 << 20));
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
  EXPECT(has_remark(back, "pretrain.label_emb: made for s3prl when it was written, not kept"));
  EXPECT(back.tensors.find("pretrain.label_emb").data == nullptr);
  const TorchFile file(folder / "m.pt");
  EXPECT((*file.root().find("dictionaries_symbols"))[0].size() == 504);
  EXPECT(save_model(folder / "f.pt", "fairseq", model.config, model.tensors).empty());
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
