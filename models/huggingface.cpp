#include "models/huggingface.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>

#include "engine/formats/safetensors.h"
#include "engine/io/directory.h"
#include "engine/io/file.h"

namespace sft {
namespace {

using Json = nlohmann::json;

struct Spelling {
  std::string_view ours, theirs;  // '#' is a number
  bool write = true;              // the spelling that we write
};

// '*' stands for weight and for bias.
constexpr std::array kSpellings = {
    Spelling{"mask_emb", "masked_spec_embed"},
    Spelling{"conv.#.*", "feature_extractor.conv_layers.#.conv.*"},
    Spelling{"conv.#.norm.*", "feature_extractor.conv_layers.#.layer_norm.*"},
    Spelling{"feat_norm.*", "feature_projection.layer_norm.*"},
    Spelling{"feat_proj.*", "feature_projection.projection.*"},
    Spelling{"pos_conv.0.weight_g", "encoder.pos_conv_embed.conv.weight_g"},
    Spelling{"pos_conv.0.weight_v", "encoder.pos_conv_embed.conv.weight_v"},
    Spelling{"pos_conv.0.weight_g", "encoder.pos_conv_embed.conv.parametrizations.weight.original0",
             false},
    Spelling{"pos_conv.0.weight_v", "encoder.pos_conv_embed.conv.parametrizations.weight.original1",
             false},
    Spelling{"pos_conv.0.bias", "encoder.pos_conv_embed.conv.bias"},
    Spelling{"enc.norm.*", "encoder.layer_norm.*"},
    Spelling{"enc.#.attn.q.*", "encoder.layers.#.attention.q_proj.*"},
    Spelling{"enc.#.attn.k.*", "encoder.layers.#.attention.k_proj.*"},
    Spelling{"enc.#.attn.v.*", "encoder.layers.#.attention.v_proj.*"},
    Spelling{"enc.#.attn.o.*", "encoder.layers.#.attention.out_proj.*"},
    Spelling{"enc.#.attn_norm.*", "encoder.layers.#.layer_norm.*"},
    Spelling{"enc.#.ffn.up.*", "encoder.layers.#.feed_forward.intermediate_dense.*"},
    Spelling{"enc.#.ffn.down.*", "encoder.layers.#.feed_forward.output_dense.*"},
    Spelling{"enc.#.ffn_norm.*", "encoder.layers.#.final_layer_norm.*"},
};

// Heads of Wav2Vec2ForPreTraining; they stand beside the backbone, without its prefix.
constexpr std::array kHeads = {
    Spelling{"pretrain.proj.*", "project_hid.*"},
    Spelling{"pretrain.vq.codebook", "quantizer.codevectors"},
    Spelling{"pretrain.vq.proj.*", "quantizer.weight_proj.*"},
    Spelling{"pretrain.vq_out.*", "project_q.*"},
};

// What '#' and '*' of `pattern` stand for in `name`; false: it does not match.
bool match(std::string_view pattern, std::string_view name, std::string& number,
           std::string& suffix) {
  size_t i = 0;
  for (char c : pattern) {
    if (c == '#') {
      const size_t begin = i;
      while (i < name.size() && name[i] >= '0' && name[i] <= '9') ++i;
      if (i == begin || i - begin > 3) return false;
      number = name.substr(begin, i - begin);
    } else if (c == '*') {
      suffix = name.substr(i);
      return suffix == "weight" || suffix == "bias";
    } else if (i == name.size() || name[i++] != c) {
      return false;
    }
  }
  return i == name.size();
}

std::string fill(std::string_view pattern, std::string_view number, std::string_view suffix) {
  std::string out;
  for (char c : pattern) {
    if (c == '#')
      out += number;
    else if (c == '*')
      out += suffix;
    else
      out += c;
  }
  return out;
}

std::string translate(std::span<const Spelling> table, std::string_view name, bool to_theirs) {
  std::string number, suffix;
  for (const Spelling& s : table) {
    if (to_theirs && !s.write) continue;
    if (match(to_theirs ? s.ours : s.theirs, name, number, suffix))
      return fill(to_theirs ? s.theirs : s.ours, number, suffix);
  }
  return "";
}

std::string backbone_prefix(const TensorFile& file) {
  constexpr std::string_view kMarker = "feature_projection.projection.weight";
  std::vector<std::string> prefixes;
  for (const TensorInfo& tensor : file.tensors())
    if (tensor.name.ends_with(kMarker))
      prefixes.push_back(tensor.name.substr(0, tensor.name.size() - kMarker.size()));
  if (prefixes.size() != 1)
    fail(Kind::input, "{}: {} tensors end with {} (expected one: a single encoder)", file.path(),
         prefixes.size(), kMarker);
  return prefixes[0];
}

// Leading dimensions of 1 that our names do not have: [1, 1, K] -> [K], [1, GV, d] -> [GV, d].
Shape our_shape(std::string_view name, const Shape& shape) {
  const size_t drop = name.ends_with("weight_g") ? 2 : name == "pretrain.vq.codebook" ? 1 : 0;
  const auto dims = shape.dims();
  if (dims.size() <= drop) return shape;
  for (size_t i = 0; i < drop; ++i)
    if (dims[i] != 1) return shape;
  return Shape(dims.subspan(drop));
}

Shape their_shape(std::string_view name, const Shape& shape) {
  if (name.ends_with("weight_g")) return {1, 1, shape[0]};
  if (name == "pretrain.vq.codebook") return {1, shape[0], shape[1]};
  return shape;
}

// config.json, with null meaning absent.
class Fields {
 public:
  Fields(const std::string& path) : path_(path) {
    json_ = Json::parse(read_text(path), nullptr, false);
    if (json_.is_discarded() || !json_.is_object())
      fail(Kind::input, "{}: not a JSON object", path_);
  }
  bool has(const char* key) const { return json_.contains(key) && !json_[key].is_null(); }
  template <class T>
  void get(const char* key, T& to) const {
    if (!has(key)) return;
    const Json& v = json_[key];
    bool ok = false;
    if constexpr (std::is_same_v<T, bool>)
      ok = v.is_boolean();
    else if constexpr (std::is_same_v<T, int64_t>)
      ok = v.is_number_integer();
    else if constexpr (std::is_same_v<T, double>)
      ok = v.is_number();
    else if constexpr (std::is_same_v<T, std::string>)
      ok = v.is_string();
    else
      ok = v.is_array() &&
           std::all_of(v.begin(), v.end(), [](const Json& x) { return x.is_number_integer(); });
    if (!ok) fail(Kind::input, "{}: {} has an unexpected type", path_, key);
    to = v.get<T>();
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  Json json_;
};

Config read_config(const std::string& folder) {
  const Fields f(folder + "/config.json");
  Config c;
  std::string type;
  f.get("model_type", type);
  if (type != "hubert" && type != "wav2vec2")
    fail(Kind::input, "{}: model_type is {} (expected hubert or wav2vec2)", f.path(),
         printable(type));
  c.arch = type;
  for (const char* key : {"hidden_act", "feat_extract_activation"}) {
    std::string activation = "gelu";
    f.get(key, activation);
    if (activation != "gelu")
      fail(Kind::input, "{}: {} is {} (expected gelu)", f.path(), key, printable(activation));
  }
  bool batch_norm = false;
  f.get("conv_pos_batch_norm", batch_norm);
  if (batch_norm)
    fail(Kind::input,
         "{}: conv_pos_batch_norm: positional convolutions with batch norm are not supported",
         f.path());
  f.get("num_hidden_layers", c.layers), f.get("hidden_size", c.width);
  f.get("intermediate_size", c.ffn), f.get("num_attention_heads", c.heads);
  f.get("layer_norm_eps", c.norm_eps), f.get("do_stable_layer_norm", c.pre_norm);
  f.get("conv_dim", c.conv_dims), f.get("conv_kernel", c.conv_kernels);
  f.get("conv_stride", c.conv_strides), f.get("conv_bias", c.conv_bias);
  f.get("feat_extract_norm", c.conv_norm), f.get("feat_proj_layer_norm", c.feat_norm);
  f.get("num_conv_pos_embeddings", c.pos_kernel),
      f.get("num_conv_pos_embedding_groups", c.pos_groups);
  f.get("hidden_dropout", c.train.dropout), f.get("attention_dropout", c.train.attention_dropout);
  c.train.activation_dropout = 0.1;  // the class's default
  f.get("activation_dropout", c.train.activation_dropout);
  c.train.input_dropout = 0;
  f.get("feat_proj_dropout", c.train.input_dropout),
      f.get("feat_quantizer_dropout", c.train.feature_dropout);
  c.train.layerdrop = 0.1;
  f.get("layerdrop", c.train.layerdrop);
  f.get("proj_codevector_dim", c.pretrain.dim),
      f.get("contrastive_logits_temperature", c.pretrain.temp);
  f.get("num_codevector_groups", c.pretrain.vq_groups),
      f.get("num_codevectors_per_group", c.pretrain.vq_vars);
  c.normalize_eps = 1e-7;
  c.normalize = false;
  const std::string preprocessor = folder + "/preprocessor_config.json";
  if (std::filesystem::exists(preprocessor)) {
    c.normalize = true;  // the class's default
    Fields(preprocessor).get("do_normalize", c.normalize);
  }
  return c;
}

std::string weights_file(const std::string& folder) {
  for (const char* name : {"/model.safetensors", "/model.safetensors.index.json"})
    if (std::filesystem::exists(folder + name)) return folder + name;
  fail(Kind::input,
       Hint{"weights in pytorch_model.bin are not read; save the model with safe_serialization"},
       "{}: no model.safetensors and no model.safetensors.index.json", folder);
}

// Tensors that belong to heads which we neither need nor keep.
bool ignorable(std::string_view name) {
  constexpr std::array kNames = {"lm_head.",   "projector.",   "classifier.",
                                 "quantizer.", "project_hid.", "project_q."};
  return std::any_of(kNames.begin(), kNames.end(),
                     [&](std::string_view n) { return name.starts_with(n); }) ||
         name == "layer_weights";
}

}  // namespace

std::string name_from_huggingface(std::string_view name) {
  return translate(kSpellings, name, false);
}
std::string name_to_huggingface(std::string_view name) { return translate(kSpellings, name, true); }

bool is_huggingface_folder(const std::string& path) {
  return std::filesystem::is_directory(path) && std::filesystem::exists(path + "/config.json");
}

StoredModel open_huggingface(const std::string& path) {
  StoredModel model{.path = path, .format = "hf", .config = read_config(path)};
  const auto file = std::make_shared<TensorFile>(open_tensor_file(weights_file(path)));
  const std::string prefix = backbone_prefix(*file);
  const bool heads = model.config.arch == "wav2vec2";
  for (const TensorInfo& info : file->tensors()) {
    const bool inside = info.name.starts_with(prefix);
    std::string name =
        inside ? name_from_huggingface(std::string_view(info.name).substr(prefix.size())) : "";
    if (name.empty() && heads) name = translate(kHeads, info.name, false);
    if (name.empty()) {
      if (!ignorable(info.name))
        fail(Kind::input, "{}: tensor {} is not one of a {} model", path, printable(info.name),
             model.config.arch);
      model.remarks.push_back(
          fmt::format("{} {}: a head, not kept", printable(info.name), info.shape));
      continue;
    }
    if (model.tensors.contains(name))
      fail(Kind::input, "{}: tensor {} is there twice, in two spellings", path, name);
    model.tensors[name] = {file, info, our_shape(name, info.shape), info.dtype};
  }
  model.config.conv_bias = model.tensors.contains("conv.0.bias");  // the tensors decide
  if (!model.tensors.contains("mask_emb")) {  // absent where both mask probabilities were 0
    model.tensors["mask_emb"] = {nullptr, {}, {model.config.width}, Dtype::f32};
    model.remarks.push_back(
        "mask_emb: not in the file, made as zeros (only pre-training reads it)");
  }
  return model;
}

namespace {

bool has(const std::vector<TensorSpec>& tensors, std::string_view name) {
  return std::any_of(tensors.begin(), tensors.end(),
                     [&](const TensorSpec& t) { return t.name == name; });
}

std::string_view torch_name(Dtype dtype) {
  if (dtype == Dtype::f16) return "float16";
  if (dtype == Dtype::bf16) return "bfloat16";
  return dtype == Dtype::f64 ? "float64" : "float32";
}

// Empty: such a folder has no place for it.
std::string their_name(std::string_view name, bool pretraining) {
  const std::string theirs = name_to_huggingface(name);
  if (!theirs.empty()) return (pretraining ? "wav2vec2." : "") + theirs;
  return pretraining ? translate(kHeads, name, true) : "";
}

Json config_json(const Config& config, bool pretraining, Dtype dtype) {
  const bool hubert = config.arch == "hubert";
  Json json = {
      {"model_type", config.arch},
      {"architectures",
       {hubert        ? "HubertModel"
        : pretraining ? "Wav2Vec2ForPreTraining"
                      : "Wav2Vec2Model"}},
      {"num_hidden_layers", config.layers},
      {"hidden_size", config.width},
      {"intermediate_size", config.ffn},
      {"num_attention_heads", config.heads},
      {"layer_norm_eps", config.norm_eps},
      {"do_stable_layer_norm", config.pre_norm},
      {"conv_dim", config.conv_dims},
      {"conv_kernel", config.conv_kernels},
      {"conv_stride", config.conv_strides},
      {"conv_bias", config.conv_bias},
      {"num_feat_extract_layers", config.conv_dims.size()},
      {"feat_extract_norm", config.conv_norm},
      {"feat_proj_layer_norm", config.feat_norm},
      {"num_conv_pos_embeddings", config.pos_kernel},
      {"num_conv_pos_embedding_groups", config.pos_groups},
      {"hidden_act", "gelu"},
      {"feat_extract_activation", "gelu"},
      {"hidden_dropout", config.train.dropout},
      {"attention_dropout", config.train.attention_dropout},
      {"activation_dropout", config.train.activation_dropout},
      {"feat_proj_dropout", config.train.input_dropout},
      {"feat_quantizer_dropout", config.train.feature_dropout},
      {"layerdrop", config.train.layerdrop},
      {"apply_spec_augment", true},
      {"mask_time_prob", 0.05},
      {"mask_time_length", 10},
      {"proj_codevector_dim", config.pretrain.dim},
      {"contrastive_logits_temperature", config.pretrain.temp},
      {"num_codevector_groups", config.pretrain.vq_groups},
      {"num_codevectors_per_group", config.pretrain.vq_vars},
      {"vocab_size", 32},
      {"pad_token_id", 0},
      {"bos_token_id", 1},
      {"eos_token_id", 2},
      {"torch_dtype", torch_name(dtype)},
  };
  return json;
}

Json preprocessor_json(const Config& config) {
  return {
      {"feature_extractor_type", "Wav2Vec2FeatureExtractor"},
      {"feature_size", 1},
      {"sampling_rate", 16000},
      {"padding_side", "right"},
      {"padding_value", 0.0},
      {"do_normalize", config.normalize},
      {"return_attention_mask", config.conv_norm == "layer"},
  };
}

}  // namespace

HuggingFaceFolder create_huggingface(const std::string& path, const Config& config,
                                     const std::vector<TensorSpec>& tensors, Existing existing) {
  const bool pretraining = config.arch == "wav2vec2" && has(tensors, "pretrain.vq.codebook");
  std::vector<std::string> dropped;
  std::vector<TensorSpec> specs;
  std::map<std::string, TensorSpec> ours;  // by their names
  Json json = config_json(config, pretraining, tensors.empty() ? Dtype::f32 : tensors[0].dtype);
  for (const TensorSpec& tensor : tensors) {
    const std::string theirs = their_name(tensor.name, pretraining);
    if (theirs.empty()) {
      dropped.push_back(fmt::format("{} {}: a Hugging Face {} folder has no place for it",
                                    tensor.name, tensor.shape, config.arch));
      continue;
    }
    if (tensor.name == "pretrain.vq.codebook")
      json["codevector_dim"] = tensor.shape[1] * config.pretrain.vq_groups;
    specs.push_back({theirs, their_shape(tensor.name, tensor.shape), tensor.dtype});
    ours[theirs] = tensor;
  }
  if (config.normalize && config.normalize_eps != 1e-7)
    dropped.push_back(
        fmt::format("input.normalize_eps {}: transformers always uses 1e-7", config.normalize_eps));
  auto folder = std::make_unique<OutputDirectory>(path, existing);
  write_text(folder->file("preprocessor_config.json"), preprocessor_json(config).dump(2) + "\n");
  write_text(folder->file("config.json"), json.dump(2) + "\n");
  TensorWriter writer =
      create_safetensors(folder->file("model.safetensors"), Metadata(), std::move(specs));
  std::vector<TensorSpec> in_order;
  for (const TensorSpec& spec : writer.tensors()) in_order.push_back(ours[spec.name]);
  return {std::move(folder), std::move(writer), std::move(in_order), std::move(dropped)};
}

}  // namespace sft
