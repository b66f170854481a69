#include "models/huggingface.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>

#include "engine/formats/safetensors.h"
#include "engine/io/directory.h"
#include "engine/io/file.h"
#include "models/huggingface_config.h"
#include "models/model_card.h"
#include "models/names.h"
#include "models/vocabulary.h"

namespace sft {
namespace {

using Json = nlohmann::json;

// An architecture and its classes in transformers.
struct Family {
  std::string_view arch;
  std::string_view bare, ctc;  // the class without a head, and with a CTC head
  std::string_view prefix;     // of the encoder inside a class with a head
};
constexpr std::array kFamilies = {
    Family{"hubert", "HubertModel", "HubertForCTC", "hubert."},
    Family{"wav2vec2", "Wav2Vec2Model", "Wav2Vec2ForCTC", "wav2vec2."},
    Family{"unispeechsat", "UniSpeechSatModel", "UniSpeechSatForCTC", "unispeech_sat."},
    Family{"wavlm", "WavLMModel", "WavLMForCTC", "wavlm."},
    Family{"data2vecaudio", "Data2VecAudioModel", "Data2VecAudioForCTC", "data2vec_audio."},
    Family{"distilhubert", "HubertModel", "HubertForCTC", "hubert."},
};

// data2vec's: before the table below, which has other names for these.
constexpr std::array kStackedPositions = {
    Spelling{"pos_conv.#.*", "encoder.pos_conv_embed.layers.#.conv.*"},
};

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
    Spelling{"pos_conv.0.weight", "encoder.pos_conv_embed.conv.weight", false},
    Spelling{"pos_conv.0.bias", "encoder.pos_conv_embed.conv.bias"},
    Spelling{"enc.norm.*", "encoder.layer_norm.*"},
    Spelling{"enc.#.attn.q.*", "encoder.layers.#.attention.q_proj.*"},
    Spelling{"enc.#.attn.k.*", "encoder.layers.#.attention.k_proj.*"},
    Spelling{"enc.#.attn.v.*", "encoder.layers.#.attention.v_proj.*"},
    Spelling{"enc.#.attn.o.*", "encoder.layers.#.attention.out_proj.*"},
    Spelling{"enc.#.attn.rel_bias", "encoder.layers.#.attention.rel_attn_embed.weight"},
    Spelling{"enc.#.attn.rel_gate.*", "encoder.layers.#.attention.gru_rel_pos_linear.*"},
    Spelling{"enc.#.attn.rel_gate.scale", "encoder.layers.#.attention.gru_rel_pos_const"},
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
constexpr std::array kCtcHead = {Spelling{"task.out.*", "lm_head.*"}};

const Family& family_of(const Config& config) {
  const auto it = std::find_if(kFamilies.begin(), kFamilies.end(),
                               [&](const Family& f) { return f.arch == config.arch; });
  if (it == kFamilies.end())
    fail(Kind::usage, Hint{"name the output .gguf or .safetensors"},
         "transformers has no class for {} models", config.arch);
  return *it;
}

// The feature extractor's file; transformers 5 writes it into the processor's.
std::optional<JsonFields> read_preprocessor(const std::string& folder) {
  const std::string alone = folder + "/preprocessor_config.json";
  if (std::filesystem::exists(alone)) return JsonFields::of_file(alone);
  const std::string processor = folder + "/processor_config.json";
  if (!std::filesystem::exists(processor)) return std::nullopt;
  const JsonFields f = JsonFields::of_file(processor);
  if (!f.has("feature_extractor")) return std::nullopt;
  return f.object("feature_extractor");
}

Config read_config(const std::string& folder, const Config::Task& task) {
  const JsonFields f = JsonFields::of_file(folder + "/config.json");
  const std::optional<JsonFields> preprocessor = read_preprocessor(folder);
  return config_from_huggingface(f, preprocessor ? &*preprocessor : nullptr, task);
}

// The units of the head, whose sizes must be those of config.json.
Vocabulary read_head(const std::string& folder, const TensorInfo& head) {
  const JsonFields f = JsonFields::of_file(folder + "/config.json");
  const int64_t outputs = head.shape.rank() ? head.shape[0] : 0;
  int64_t size = outputs;
  f.get("vocab_size", size);
  if (size != outputs)
    fail(Kind::input, Hint{"sft-convert --part encoder takes the model without its head"},
         "{}: vocab_size is {}, but {} is {}", printable(f.path()), size, head.name, head.shape);
  Vocabulary vocabulary = read_vocabulary(folder, outputs);
  int64_t pad = vocabulary.task.blank;
  f.get("pad_token_id", pad);
  if (pad != vocabulary.task.blank)
    vocabulary.remarks.push_back(
        fmt::format("config.json: pad_token_id is {}; the blank is the tokenizer's pad_token, {}",
                    pad, vocabulary.task.blank));
  return vocabulary;
}

std::string weights_file(const std::string& folder) {
  for (const char* name : {"/model.safetensors", "/model.safetensors.index.json",
                           "/pytorch_model.bin", "/pytorch_model.bin.index.json"})
    if (std::filesystem::exists(folder + name)) return folder + name;
  fail(Kind::input,
       "{}: no model.safetensors and no pytorch_model.bin, nor an index of either in shards",
       printable(folder));
}

// Tensors that belong to heads which we neither need nor keep.
bool ignorable(std::string_view name) {
  constexpr std::array kNames = {"lm_head.",
                                 "projector.",
                                 "classifier.",
                                 "quantizer.",
                                 "project_hid.",
                                 "project_q.",
                                 "speaker_proj.",
                                 "label_embeddings_concat",
                                 "layer_norm_for_extract."};
  return std::any_of(kNames.begin(), kNames.end(),
                     [&](std::string_view n) { return name.starts_with(n); }) ||
         name == "layer_weights";
}

}  // namespace

std::string name_from_huggingface(std::string_view name) {
  const std::string ours = translate(kSpellings, name, false);
  return ours.empty() ? translate(kStackedPositions, name, false) : ours;
}
std::string name_to_huggingface(std::string_view name, const Config& config) {
  const std::string stacked =
      config.stacked_positions() ? translate(kStackedPositions, name, true) : "";
  return stacked.empty() ? translate(kSpellings, name, true) : stacked;
}

bool is_huggingface_folder(const std::string& path) {
  return std::filesystem::is_directory(path) && std::filesystem::exists(path + "/config.json");
}

namespace {

std::string base_name(const std::string& path) {
  const auto normal = (std::filesystem::path(path) / ".").lexically_normal();
  return normal.parent_path().filename().string();
}

// Our name of a tensor; empty: it belongs to a head that is not kept.
std::string name_of(const std::string& path, const TensorInfo& info, std::string_view prefix,
                    const Config& config) {
  std::string name;
  if (info.name.starts_with(prefix))
    name = name_from_huggingface(std::string_view(info.name).substr(prefix.size()));
  if (name.empty() && config.arch == "wav2vec2") name = translate(kHeads, info.name, false);
  if (name.empty() && !config.task.kind.empty()) name = translate(kCtcHead, info.name, false);
  if (name.empty() && !ignorable(info.name))
    fail(Kind::input, "{}: tensor {} {} is not one of a {} model", printable(path),
         printable(info.name), info.shape, config.arch);
  return name;
}

// Adds a tensor under our name, or says that it is dropped.
void add_tensor(StoredModel& model, const std::shared_ptr<TensorFile>& file, const TensorInfo& info,
                std::string_view prefix) {
  const std::string name = name_of(model.path, info, prefix, model.config);
  if (name.empty()) {
    model.remarks.push_back(
        fmt::format("{} {}: a head, not kept", printable(info.name), info.shape));
    return;
  }
  if (model.tensors.contains(name))
    fail(Kind::input, "{}: tensor {} is there twice, in two spellings", printable(model.path),
         name);
  model.tensors[name] = {file, info, our_shape(name, info.shape), info.dtype};
}

}  // namespace

StoredModel open_huggingface(const std::string& path, bool with_heads) {
  StoredModel model{.path = path, .format = "hf"};
  const auto file = std::make_shared<TensorFile>(open_tensor_file(weights_file(path)));
  Vocabulary head;
  const TensorInfo* lm_head = with_heads ? file->find("lm_head.weight") : nullptr;
  if (lm_head) head = read_head(path, *lm_head);
  model.config = read_config(path, head.task);
  model.remarks = head.remarks;
  Metadata& provenance = model.config.provenance;
  if (!provenance.has("general.name")) provenance.set("general.name", base_name(path));
  if (!provenance.has("sft.source.format")) {
    provenance.set("sft.source.format", std::string("hf"));
    provenance.set("sft.source.name", base_name(path));
  }
  model.in_file = static_cast<int64_t>(file->tensors().size());
  std::vector<std::string_view> names;
  for (const TensorInfo& info : file->tensors()) names.push_back(info.name);
  const std::string prefix = backbone_prefix(path, names, "feature_projection.projection.weight");
  for (const TensorInfo& info : file->tensors()) add_tensor(model, file, info, prefix);
  if (model.config.arch == "distilhubert")  // has none of its own
    model.config.mask_emb = model.tensors.contains("mask_emb");
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

// What stands on the encoder in the class that is written.
enum class Head { none, pretraining, ctc };

// Empty: such a folder has no place for it.
std::string their_name(std::string_view name, const Config& config, Head head) {
  const std::string theirs = name_to_huggingface(name, config);
  if (!theirs.empty())
    return (head == Head::none ? "" : std::string(family_of(config).prefix)) + theirs;
  if (head == Head::ctc) return translate(kCtcHead, name, true);
  return head == Head::pretraining ? translate(kHeads, name, true) : "";
}

// Wav2Vec2ForPreTraining has all four heads, or transformers would make the missing ones up.
bool has_pretraining_heads(const Config& config, const std::vector<TensorSpec>& tensors) {
  return config.arch == "wav2vec2" &&
         std::all_of(kHeads.begin(), kHeads.end(),
                     [&](const Spelling& s) { return has(tensors, fill(s.ours, "", "weight")); });
}

Head head_of(const Config& config, const std::vector<TensorSpec>& tensors) {
  std::vector<std::string_view> task;
  for (const TensorSpec& tensor : tensors)
    if (tensor.name.starts_with("task.")) task.push_back(tensor.name);
  if (task.empty()) return has_pretraining_heads(config, tensors) ? Head::pretraining : Head::none;
  for (std::string_view name : task)
    if (config.task.head != "linear" || translate(kCtcHead, name, true).empty())
      fail(Kind::usage, Hint{"--part encoder leaves it out; GGUF and safetensors hold it"},
           "{}: transformers has no {} head with {} (expected a linear CTC head alone)", name,
           config.task.kind, config.task.head == "linear" ? "layer weights" : config.task.head);
  return Head::ctc;
}

std::string_view class_of(const Config& config, Head head) {
  if (head == Head::pretraining) return "Wav2Vec2ForPreTraining";
  return head == Head::ctc ? family_of(config).ctc : family_of(config).bare;
}

Json id_or_null(int64_t id) { return id < 0 ? Json(nullptr) : Json(id); }

// Sizes and ids that ForCTC needs; the dropout in front of its head is one that ours do not have.
void add_ctc(Json& json, const Config::Task& task) {
  json["vocab_size"] = task.units.size();
  json["pad_token_id"] = task.blank;
  json["bos_token_id"] = id_or_null(special_id(task, "<s>"));
  json["eos_token_id"] = id_or_null(special_id(task, "</s>"));
  json["final_dropout"] = 0.0;
}

Json config_json(const Config& config, Head head, Dtype dtype) {
  Json json = {
      {"model_type", model_type_of(config.arch)},
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
      // above 0, or transformers has no masked_spec_embed
      {"mask_time_prob", config.mask_emb ? 0.05 : 0.0},
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
  if (config.relative_bias()) {
    json["num_buckets"] = config.rel_buckets;
    json["max_bucket_distance"] = config.rel_max_distance;
  }
  if (config.stacked_positions()) {
    json["conv_pos_kernel_size"] = config.pos_kernel;
    json["num_conv_pos_embeddings"] = config.pos_depth;
    json.erase("feat_extract_norm"), json.erase("do_stable_layer_norm");
  }
  if (head == Head::ctc) add_ctc(json, config.task);
  json["architectures"] = Json::array({class_of(config, head)});
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

// What a reader of config.json alone would not know, or know otherwise.
Json our_keys(const Config& config, const Json& json, const Json& preprocessor) {
  const JsonFields f("config.json", json.dump());
  const JsonFields p("preprocessor_config.json", preprocessor.dump());
  const Metadata known = metadata_from_config(config_from_huggingface(f, &p, config.task)),
                 all = metadata_from_config(config);
  Json ours = Json::object();
  for (const auto& [key, value] : all.entries()) {
    const MetadataValue* same = known.find(key);
    if (!same || *same != value) ours[key] = Json::parse(value_to_json(value));
  }
  return ours;
}

// Adds to `json` what transformers has no keys for; says so.
void keep_our_keys(const Config& config, Json& json, const Json& preprocessor,
                   std::vector<std::string>& remarks) {
  const Json ours = our_keys(config, json, preprocessor);
  std::vector<std::string> keys;
  for (const auto& item : ours.items()) keys.push_back(item.key());
  if (keys.empty()) return;
  json[std::string(kOurKeys)] = ours;
  remarks.push_back(fmt::format("kept under \"{}\" of config.json, which transformers ignores: {}",
                                kOurKeys, fmt::join(keys, ", ")));
}

}  // namespace

HuggingFaceFolder create_huggingface(const std::string& path, const Config& config,
                                     const std::vector<TensorSpec>& tensors, Existing existing) {
  const Head head = head_of(config, tensors);
  Config kept = config;
  kept.pretrain.distill = {};
  if (head != Head::ctc) kept.task = {};
  std::vector<std::string> dropped;
  std::vector<TensorSpec> specs;
  std::map<std::string, TensorSpec> ours;  // by their names
  const Json preprocessor = preprocessor_json(kept);
  Json json = config_json(kept, head, tensors.empty() ? Dtype::f32 : tensors[0].dtype);
  for (const TensorSpec& tensor : tensors) {
    const std::string theirs = their_name(tensor.name, config, head);
    if (theirs.empty()) {
      dropped.push_back(fmt::format("{} {}: transformers has no place for it, dropped", tensor.name,
                                    tensor.shape));
      continue;
    }
    if (head == Head::pretraining && tensor.name == "pretrain.vq.codebook")
      json["codevector_dim"] = tensor.shape[1] * config.pretrain.vq_groups;
    specs.push_back({theirs, their_shape(tensor.name, tensor.shape), tensor.dtype});
    ours[theirs] = tensor;
  }
  keep_our_keys(kept, json, preprocessor, dropped);
  if (config.normalize && config.normalize_eps != 1e-7)
    dropped.push_back(
        fmt::format("transformers normalises with 1e-7 in place of {}", config.normalize_eps));
  std::map<std::string, std::string, std::less<>> texts;  // files, by name
  if (head == Head::ctc) texts = vocabulary_texts(kept.task);
  texts["README.md"] = model_card(kept, class_of(kept, head), tensors);
  auto folder = std::make_unique<OutputDirectory>(path, existing);
  for (const auto& [name, text] : texts) write_text(folder->file(name), text);
  write_text(folder->file("preprocessor_config.json"), preprocessor.dump(2) + "\n");
  write_text(folder->file("config.json"), json.dump(2) + "\n");
  TensorWriter writer =
      create_safetensors(folder->file("model.safetensors"), Metadata(), std::move(specs));
  std::vector<TensorSpec> in_order;
  for (const TensorSpec& spec : writer.tensors()) in_order.push_back(ours[spec.name]);
  return {std::move(folder), std::move(writer), std::move(in_order), std::move(dropped)};
}

}  // namespace sft
