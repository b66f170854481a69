#include "models/huggingface_config.h"

#include <array>

#include "engine/check.h"

namespace sft {
namespace {

struct ModelType {
  std::string_view arch, name;
};
constexpr std::array kModelTypes = {
    ModelType{"hubert", "hubert"},
    ModelType{"wav2vec2", "wav2vec2"},
    ModelType{"unispeechsat", "unispeech-sat"},
    ModelType{"wavlm", "wavlm"},
    ModelType{"data2vecaudio", "data2vec-audio"},
    ModelType{"distilhubert", "hubert"},  // without a norm before the projection
};

// What we do not compute: a file that asks for it is not one of ours.
void refuse_variants(const JsonFields& f) {
  for (const char* key : {"hidden_act", "feat_extract_activation"}) {
    std::string activation = "gelu";
    f.get(key, activation);
    if (activation != "gelu")
      fail(Kind::input, "{}: {} is {} (expected gelu)", printable(f.path()), key,
           printable(activation));
  }
  for (const char* key : {"conv_pos_batch_norm", "add_adapter"}) {
    bool on = false;
    f.get(key, on);
    if (on) fail(Kind::input, "{}: {} is true (expected false)", printable(f.path()), key);
  }
}

std::string_view arch_of(const JsonFields& f) {
  std::string type;
  f.get("model_type", type);
  std::vector<std::string_view> known;
  for (const ModelType& model : kModelTypes) {
    if (model.name == type) return model.arch;
    if (known.empty() || known.front() != model.name) known.push_back(model.name);
  }
  fail(Kind::input, "{}: model_type is {} (expected {})", printable(f.path()),
       type.empty() ? "missing" : printable(type), fmt::join(known, ", "));
}

Config architecture(const JsonFields& f) {
  Config c;
  c.arch = arch_of(f);
  f.get("num_hidden_layers", c.layers);
  f.get("hidden_size", c.width);
  f.get("intermediate_size", c.ffn);
  f.get("num_attention_heads", c.heads);
  f.get("layer_norm_eps", c.norm_eps);
  f.get("do_stable_layer_norm", c.pre_norm);
  f.get("conv_dim", c.conv_dims);
  f.get("conv_kernel", c.conv_kernels);
  f.get("conv_stride", c.conv_strides);
  auto convolutions = static_cast<int64_t>(c.conv_dims.size());
  f.get("num_feat_extract_layers", convolutions);
  if (convolutions != static_cast<int64_t>(c.conv_dims.size()))
    fail(Kind::input, "{}: num_feat_extract_layers is {}, but conv_dim has {}", printable(f.path()),
         convolutions, c.conv_dims.size());
  f.get("conv_bias", c.conv_bias);
  f.get("feat_extract_norm", c.conv_norm);
  f.get("feat_proj_layer_norm", c.feat_norm);
  f.get("num_conv_pos_embedding_groups", c.pos_groups);
  f.get("num_buckets", c.rel_buckets);
  f.get("max_bucket_distance", c.rel_max_distance);
  if (c.stacked_positions()) {
    c.conv_norm = "layer", c.pre_norm = false;  // Data2VecAudioModel has no others
    c.pos_kernel = 19, c.pos_depth = 5;
    f.get("conv_pos_kernel_size", c.pos_kernel);
    f.get("num_conv_pos_embeddings", c.pos_depth);
  } else {
    f.get("num_conv_pos_embeddings", c.pos_kernel);
  }
  if (c.arch == "hubert" && !c.feat_norm) c.arch = "distilhubert", c.mask_emb = false;
  return c;
}

// Defaults are those of HubertConfig, Wav2Vec2Config and WavLMConfig.
void read_training(const JsonFields& f, Config& c) {
  auto& t = c.train;
  t.activation_dropout = 0.1, t.input_dropout = 0, t.feature_dropout = 0, t.layerdrop = 0.1;
  f.get("hidden_dropout", t.dropout);
  f.get("attention_dropout", t.attention_dropout);
  f.get("activation_dropout", t.activation_dropout);
  f.get("feat_proj_dropout", t.input_dropout);
  f.get("feat_quantizer_dropout", t.feature_dropout);
  f.get("layerdrop", t.layerdrop);
  f.get("proj_codevector_dim", c.pretrain.dim);
  f.get("contrastive_logits_temperature", c.pretrain.temp);
  f.get("num_codevector_groups", c.pretrain.vq_groups);
  f.get("num_codevectors_per_group", c.pretrain.vq_vars);
}

// What a folder that we wrote says beyond transformers' own keys.
Config with_our_keys(const Config& config, const JsonFields& f) {
  if (!f.has(kOurKeys)) return config;
  Metadata metadata = metadata_from_config(config);
  for (const auto& [key, value] : f.object(kOurKeys).members()) {
    if (key == "general.architecture") continue;
    if (config.task.kind.empty() && key.starts_with("sft.task.")) continue;  // of a head left out
    metadata.set(key, value_from_json(value, f.path(), key));
  }
  return config_from_metadata(metadata, f.path());
}

}  // namespace

std::string_view model_type_of(std::string_view arch) {
  for (const ModelType& model : kModelTypes)
    if (model.arch == arch) return model.name;
  return "";
}

Config config_from_huggingface(const JsonFields& f, const JsonFields* preprocessor,
                               const Config::Task& task) {
  refuse_variants(f);
  Config c = architecture(f);
  read_training(f, c);
  c.task = task;
  c.normalize_eps = 1e-7;                 // Wav2Vec2FeatureExtractor's
  c.normalize = preprocessor != nullptr;  // do_normalize is true where it is not given
  if (preprocessor) {
    preprocessor->get("do_normalize", c.normalize);
    int64_t rate = 16000;
    preprocessor->get("sampling_rate", rate);
    if (rate != 16000)
      fail(Kind::input, "{}: sampling_rate is {} (expected 16000)", printable(preprocessor->path()),
           rate);
  }
  check_config(c, f.path());
  return with_our_keys(c, f);
}

}  // namespace sft
