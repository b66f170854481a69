#include "models/fairseq_config.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "engine/check.h"

namespace sft {

PickleValue unwrapped(PickleValue value) {
  constexpr int kDeepest = 16;
  for (int depth = 0; depth < kDeepest; ++depth) {
    if (!value.is(PickleType::object) || !value.maker().module().starts_with("omegaconf")) break;
    const PickleValue state = value.state();
    auto inside = state.find("_content");
    if (!inside) inside = state.find("_val");
    if (!inside) break;
    value = *inside;
  }
  return value;
}

std::optional<PickleValue> fields_of(std::optional<PickleValue> value) {
  if (!value) return {};
  const PickleValue plain = unwrapped(*value);
  if (plain.is(PickleType::dict)) return plain;
  if (!plain.is(PickleType::object) || !plain.maker().is_global("argparse", "Namespace")) return {};
  return plain.state().is(PickleType::dict) ? std::optional(plain.state()) : std::nullopt;
}

// ---- the expression of convolutions

namespace {

class ConvParser {
 public:
  ConvParser(std::string_view text, std::string_view where) : text_(text), where_(where) {}

  ConvLayers all() {
    do {
      term();
    } while (accept('+'));
    if (at_ != text_.size()) bad();
    return layers_;
  }

 private:
  static constexpr size_t kMostLayers = 64;

  [[noreturn]] void bad() const {
    fail(Kind::input,
         "{}: conv_feature_layers is {}, at character {} (expected as [(512, 10, 5)] + "
         "[(512, 3, 2)] * 4)",
         printable(where_), printable(text_, 120), at_);
  }
  void spaces() {
    while (at_ < text_.size() && text_[at_] == ' ') ++at_;
  }
  bool accept(char c) {
    spaces();
    if (at_ == text_.size() || text_[at_] != c) return false;
    ++at_;
    spaces();
    return true;
  }
  void expect(char c) {
    if (!accept(c)) bad();
  }
  int64_t number() {
    spaces();
    int64_t value = 0;
    const auto [end, error] =
        std::from_chars(text_.data() + at_, text_.data() + text_.size(), value);
    if (error != std::errc() || value < 1 || value > 1 << 20) bad();
    at_ = static_cast<size_t>(end - text_.data());
    spaces();
    return value;
  }
  void term() {
    const size_t begin = layers_.dims.size();
    expect('[');
    do {
      if (!layers_.dims.empty() && text_[at_] == ']') break;  // a comma at the end
      tuple();
    } while (accept(','));
    expect(']');
    if (accept('*')) repeat(begin, number());
    if (layers_.dims.size() > kMostLayers) bad();
  }
  void tuple() {
    expect('(');
    layers_.dims.push_back(number());
    expect(',');
    layers_.kernels.push_back(number());
    expect(',');
    layers_.strides.push_back(number());
    accept(',');
    expect(')');
    if (layers_.dims.size() > kMostLayers) bad();
  }
  void repeat(size_t begin, int64_t times) {
    const size_t count = layers_.dims.size() - begin;
    if (static_cast<size_t>(times) * count > kMostLayers) bad();
    for (auto* list : {&layers_.dims, &layers_.kernels, &layers_.strides})
      for (size_t i = 0; i < count * (static_cast<size_t>(times) - 1); ++i)
        list->push_back((*list)[begin + i]);
  }

  std::string_view text_, where_;
  size_t at_ = 0;
  ConvLayers layers_;
};

}  // namespace

ConvLayers parse_conv_layers(std::string_view text, std::string_view where) {
  return ConvParser(text, where).all();
}

std::string conv_layers_text(const Config& c) {
  std::string out;
  for (size_t i = 0; i < c.conv_dims.size(); ++i)
    out += fmt::format("{}({}, {}, {})", i ? ", " : "", c.conv_dims[i], c.conv_kernels[i],
                       c.conv_strides[i]);
  return "[" + out + "]";
}

// ---- reading

namespace {

// Keys of a list of dicts. Old files hold numbers as text.
class Fields {
 public:
  Fields(std::string_view path, std::span<const PickleValue> dicts) : path_(path), dicts_(dicts) {}

  std::optional<PickleValue> find(std::string_view key) const {
    for (const PickleValue& dict : dicts_)
      if (const auto value = dict.find(key); value && !unwrapped(*value).is(PickleType::none))
        return unwrapped(*value);
    return {};
  }
  void get(std::string_view key, int64_t& to) const {
    const auto value = find(key);
    if (!value) return;
    const auto number = number_of(*value);
    if (!number || *number != std::floor(*number) || std::abs(*number) > 1e15)
      bad(key, *value, "an integer");
    to = static_cast<int64_t>(*number);
  }
  void get(std::string_view key, double& to) const {
    const auto value = find(key);
    if (!value) return;
    const auto number = number_of(*value);
    if (!number) bad(key, *value, "a number");
    to = *number;
  }
  void get(std::string_view key, bool& to) const {
    const auto value = find(key);
    if (!value) return;
    const auto integer = value->integer();
    if (integer == 0 || integer == 1)
      to = *integer == 1;
    else if (value->text() == "True" || value->text() == "False")
      to = value->text() == "True";
    else
      bad(key, *value, "true or false");
  }
  void get(std::string_view key, std::string& to) const {
    const auto value = find(key);
    if (!value) return;
    if (!value->is(PickleType::text)) bad(key, *value, "a text");
    to = value->text();
  }
  [[noreturn]] void bad(std::string_view key, PickleValue value, std::string_view wanted) const {
    std::string shown = "of another type";
    if (const auto number = value.real()) shown = fmt::format("{}", *number);
    if (value.is(PickleType::text)) shown = fmt::format("\"{}\"", printable(value.text(), 60));
    fail(Kind::input, "{}: {} is {} (expected {})", printable(path_), key, shown, wanted);
  }

 private:
  static std::optional<double> number_of(PickleValue value) {
    if (value.is(PickleType::boolean)) return {};
    if (const auto number = value.real()) return number;
    const std::string_view text = value.text();
    double number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (error != std::errc() || text.empty() || end != text.data() + text.size()) return {};
    return number;
  }

  std::string_view path_;
  std::span<const PickleValue> dicts_;
};

// What is not computed here: a file that asks for it is not one of ours.
void refuse_variants(const Fields& model, std::string_view path) {
  std::string activation = "gelu";
  model.get("activation_fn", activation);
  if (activation != "gelu")
    fail(Kind::input, "{}: activation_fn is {} (expected gelu)", printable(path),
         printable(activation));
  bool batch_norm = false;
  model.get("conv_pos_batch_norm", batch_norm);
  if (batch_norm)
    fail(Kind::input, "{}: conv_pos_batch_norm is true (expected false)", printable(path));
  std::string layers = "transformer";
  model.get("layer_type", layers);
  if (layers != "transformer")
    fail(Kind::input, "{}: layer_type is {} (expected transformer)", printable(path),
         printable(layers));
}

// One weight-normed convolution, or several plain ones that share the taps.
void read_positions(const Fields& f, std::string_view path, Config& c) {
  int64_t taps = 128, depth = 1;
  f.get("conv_pos", taps);
  f.get("pos_conv_depth", depth);
  f.get("conv_pos_groups", c.pos_groups);
  const bool stacked = c.stacked_positions();
  if (stacked ? depth < 2 || depth > 16 : depth != 1)
    fail(Kind::input, "{}: pos_conv_depth is {} (expected {})", printable(path), depth,
         stacked ? "2 to 16" : "1");
  c.pos_kernel = stacked ? std::max<int64_t>(3, taps / depth) : taps;
  c.pos_depth = depth;
}

void read_architecture(const Fields& f, std::string_view path, Config& c) {
  f.get("encoder_layers", c.layers);
  f.get("encoder_embed_dim", c.width);
  f.get("encoder_ffn_embed_dim", c.ffn);
  f.get("encoder_attention_heads", c.heads);
  f.get("layer_norm_first", c.pre_norm);
  f.get("conv_bias", c.conv_bias);
  f.get("num_buckets", c.rel_buckets);
  f.get("max_distance", c.rel_max_distance);
  std::string mode = "default", convolutions;
  f.get("extractor_mode", mode);
  if (mode != "default" && mode != "layer_norm")
    fail(Kind::input, "{}: extractor_mode is {} (expected default or layer_norm)", printable(path),
         printable(mode));
  c.conv_norm = mode == "default" ? "group" : "layer";
  f.get(c.arch == "distilhubert" ? "extractor_conv_feature_layers" : "conv_feature_layers",
        convolutions);
  if (convolutions.empty()) return;
  ConvLayers layers = parse_conv_layers(convolutions, path);
  c.conv_dims = std::move(layers.dims);
  c.conv_kernels = std::move(layers.kernels);
  c.conv_strides = std::move(layers.strides);
}

// Of a text that decides what is computed: one of those that are computed here.
void expect(const Fields& f, std::string_view path, std::string_view key,
            std::initializer_list<std::string_view> known) {
  std::string value(*known.begin());
  f.get(key, value);
  if (std::find(known.begin(), known.end(), value) == known.end())
    fail(Kind::input, "{}: {} is {} (expected {})", printable(path), key, printable(value),
         fmt::join(known, " or "));
}

// Predictions come from heads of their own ("expand-last"), or there are none.
void read_distill(const Fields& f, std::string_view path, Config& c) {
  expect(f, path, "attention_type", {"original"});
  expect(f, path, "task_emb_type", {"expand-last", "self-hidden", "none"});
  expect(f, path, "out_layer_type", {"expand-last", "self-hidden", "none"});
  std::string heads = "expand-last";
  f.get("out_layer_type", heads);
  c.pretrain.distill.clear();
  if (heads != "expand-last") return;
  int64_t count = 12;
  f.get("n_tasks", count);
  const auto list = f.find("pred_layer_id");
  if (count < 1 || count > 64 || (list && static_cast<int64_t>(list->size()) != count))
    fail(Kind::input, "{}: n_tasks is {} (expected 1 to 64, as many as pred_layer_id has)",
         printable(path), count);
  for (int64_t i = 0; i < count; ++i) {
    const auto layer = list ? (*list)[static_cast<size_t>(i)].integer() : i + 1;
    if (!layer || *layer < 0 || *layer > 64)
      fail(Kind::input, "{}: pred_layer_id has an element that is no layer (expected 0 to 64)",
           printable(path));
    c.pretrain.distill.push_back(*layer);
  }
}

// Defaults are those of DistillerConfig of s3prl, which has no other rates.
void read_distiller_training(const Fields& f, Config& c) {
  auto& t = c.train;
  t.feature_grad_mult = 1;
  f.get("dropout", t.dropout);
  f.get("attention_dropout", t.attention_dropout);
  f.get("activation_dropout", t.activation_dropout);
  f.get("encoder_layerdrop", t.layerdrop);
  f.get("feature_grad_mult", t.feature_grad_mult);
}

// Defaults are those of HubertConfig and Wav2Vec2Config of fairseq.
void read_training(const Fields& f, Config& c) {
  auto& t = c.train;
  t = {.activation_dropout = 0,
       .input_dropout = 0,
       .feature_dropout = 0,
       .layerdrop = 0,
       .feature_grad_mult = 1,
       .mask_prob = 0.65};
  f.get("dropout", t.dropout);
  f.get("attention_dropout", t.attention_dropout);
  f.get("activation_dropout", t.activation_dropout);
  f.get("dropout_input", t.input_dropout);
  f.get("dropout_features", t.feature_dropout);
  f.get("encoder_layerdrop", t.layerdrop);
  f.get("feature_grad_mult", t.feature_grad_mult);
  f.get("mask_prob", t.mask_prob);
  f.get("mask_length", t.mask_length);
  c.pretrain.dim = 0;
  f.get("final_dim", c.pretrain.dim);
  if (c.pretrain.dim <= 0) c.pretrain.dim = c.width;
  f.get("logit_temp", c.pretrain.temp);
  f.get("latent_groups", c.pretrain.vq_groups);
  f.get("latent_vars", c.pretrain.vq_vars);
}

}  // namespace

std::string family_of(const FairseqSettings& settings) {
  const Fields f(settings.path, settings.model);
  for (const char* key : {"_name", "arch"}) {
    std::string name;
    if (const auto value = f.find(key)) name = value->text();
    for (const char* family : {"hubert", "wavlm"})
      if (name.find(family) != std::string::npos) return family;
    if (name.find("data2vec") != std::string::npos) return "data2vecaudio";
    if (name.starts_with("wav2vec")) return "wav2vec2";
  }
  return "";
}

Config default_config(std::string_view family, std::string_view where) {
  Metadata metadata;
  metadata.set("general.architecture", std::string(family));
  return config_from_metadata(metadata, where);
}

Config config_of(const FairseqSettings& settings, std::string_view family) {
  const Fields model(settings.path, settings.model), task(settings.path, settings.task);
  refuse_variants(model, settings.path);
  Config c = default_config(family, settings.path);
  read_architecture(model, settings.path, c);
  read_positions(model, settings.path, c);
  if (c.arch == "distilhubert") {
    read_distill(model, settings.path, c);
    read_distiller_training(model, c);
  } else {
    read_training(model, c);
  }
  task.get("normalize", c.normalize);
  if (!task.find("normalize")) model.get("normalize", c.normalize);
  check_config(c, settings.path);
  return c;
}

// ---- writing

TorchTree model_settings(const Config& c) {
  using Tree = TorchTree;
  const auto& t = c.train;
  std::vector<std::pair<std::string, Tree>> items = {
      {"_name", Tree::text(c.stacked_positions() ? "data2vec_audio" : c.arch)},
      {"extractor_mode", Tree::text(c.conv_norm == "group" ? "default" : "layer_norm")},
      {"encoder_layers", Tree::integer(c.layers)},
      {"encoder_embed_dim", Tree::integer(c.width)},
      {"encoder_ffn_embed_dim", Tree::integer(c.ffn)},
      {"encoder_attention_heads", Tree::integer(c.heads)},
      {"activation_fn", Tree::text("gelu")},
      {"layer_norm_first", Tree::boolean(c.pre_norm)},
      {"conv_feature_layers", Tree::text(conv_layers_text(c))},
      {"conv_bias", Tree::boolean(c.conv_bias)},
      {"conv_pos", Tree::integer(c.pos_kernel * c.pos_depth)},
      {"conv_pos_groups", Tree::integer(c.pos_groups)},
      {"dropout", Tree::real(t.dropout)},
      {"attention_dropout", Tree::real(t.attention_dropout)},
      {"activation_dropout", Tree::real(t.activation_dropout)},
      {"dropout_input", Tree::real(t.input_dropout)},
      {"dropout_features", Tree::real(t.feature_dropout)},
      {"encoder_layerdrop", Tree::real(t.layerdrop)},
      {"feature_grad_mult", Tree::real(t.feature_grad_mult)},
      {"mask_prob", Tree::real(t.mask_prob)},
      {"mask_length", Tree::integer(t.mask_length)},
      {"final_dim", Tree::integer(c.pretrain.dim)},
      {"logit_temp", Tree::real(c.pretrain.temp)},
      {"untie_final_proj", Tree::boolean(false)},
      {"quantize_targets", Tree::boolean(c.arch == "wav2vec2")},
      {"label_rate", Tree::real(16000.0 / static_cast<double>(c.hop()))},
      {"normalize", Tree::boolean(c.normalize)},
      {"relative_position_embedding", Tree::boolean(c.relative_bias())},
  };
  if (c.arch == "wav2vec2") {
    items.emplace_back("latent_vars", Tree::integer(c.pretrain.vq_vars));
    items.emplace_back("latent_groups", Tree::integer(c.pretrain.vq_groups));
  }
  if (c.stacked_positions()) items.emplace_back("pos_conv_depth", Tree::integer(c.pos_depth));
  if (c.relative_bias()) {
    items.emplace_back("gru_rel_pos", Tree::boolean(true));
    items.emplace_back("num_buckets", Tree::integer(c.rel_buckets));
    items.emplace_back("max_distance", Tree::integer(c.rel_max_distance));
  }
  return Tree::dict(std::move(items));
}

namespace {

// fairseq takes no other keys: only HuBERT's task has a label_rate.
std::vector<std::pair<std::string, TorchTree>> task_items(const Config& c) {
  using Tree = TorchTree;
  const bool hubert = c.arch == "hubert";
  std::vector<std::pair<std::string, Tree>> items = {
      {"_name", Tree::text(hubert ? "hubert_pretraining" : "audio_pretraining")},
      {"normalize", Tree::boolean(c.normalize)},
      {"sample_rate", Tree::integer(16000)}};
  if (hubert) items.emplace_back("label_rate", Tree::real(16000.0 / static_cast<double>(c.hop())));
  return items;
}

// Of the model inside a fine-tuned one: with no labels fairseq looks for no dictionaries of
// classes.
TorchTree pretrained_task(const Config& c) {
  std::vector<std::pair<std::string, TorchTree>> items = task_items(c);
  items.emplace_back("data", TorchTree::none());
  if (c.arch == "hubert") items.emplace_back("labels", TorchTree::list({}));
  return TorchTree::dict(std::move(items));
}

}  // namespace

// fairseq asks for data, and for HuBERT's classes in dict.km.txt there; who loads the file may say
// where, since the key exists.
TorchTree task_settings(const Config& c) {
  std::vector<std::pair<std::string, TorchTree>> items = task_items(c);
  items.emplace_back("data", TorchTree::text(""));
  if (c.arch == "hubert") items.emplace_back("labels", TorchTree::list({TorchTree::text("km")}));
  return TorchTree::dict(std::move(items));
}

TorchTree fine_tuned_settings(const Config& c, std::string_view class_name) {
  using Tree = TorchTree;
  const auto& t = c.train;
  const Tree pretrained = Tree::dict({{"model", model_settings(c)}, {"task", pretrained_task(c)}});
  const Tree model = Tree::dict({{"_name", Tree::text(std::string(class_name))},
                                 {"w2v_path", Tree::text("")},
                                 {"no_pretrained_weights", Tree::boolean(true)},
                                 {"w2v_args", pretrained},
                                 {"normalize", Tree::boolean(c.normalize)},
                                 {"data", Tree::text("")},
                                 {"apply_mask", Tree::boolean(false)},
                                 {"dropout", Tree::real(t.dropout)},
                                 {"attention_dropout", Tree::real(t.attention_dropout)},
                                 {"activation_dropout", Tree::real(t.activation_dropout)},
                                 {"dropout_input", Tree::real(t.input_dropout)},
                                 {"final_dropout", Tree::real(0)},
                                 {"layerdrop", Tree::real(t.layerdrop)},
                                 {"mask_prob", Tree::real(t.mask_prob)},
                                 {"mask_length", Tree::integer(t.mask_length)},
                                 {"feature_grad_mult", Tree::real(t.feature_grad_mult)}});
  const Tree task = Tree::dict({{"_name", Tree::text("audio_finetuning")},
                                {"data", Tree::text("")},
                                {"labels", Tree::text("ltr")},
                                {"normalize", Tree::boolean(c.normalize)},
                                {"sample_rate", Tree::integer(16000)}});
  const Tree criterion = Tree::dict({{"_name", Tree::text("ctc")}});
  return Tree::dict({{"model", model}, {"task", task}, {"criterion", criterion}});
}

// Without heads s3prl's own code runs only if its predictions are its states ("self-hidden").
TorchTree distiller_settings(const Config& c) {
  using Tree = TorchTree;
  const auto& t = c.train;
  std::vector<int64_t> layers = c.pretrain.distill;
  const char* heads = layers.empty() ? "self-hidden" : "expand-last";
  for (int64_t i = 0; c.pretrain.distill.empty() && i <= c.layers; ++i) layers.push_back(i);
  std::vector<Tree> predicted;
  for (int64_t layer : layers) predicted.push_back(Tree::integer(layer));
  return Tree::dict({
      {"extractor_mode", Tree::text(c.conv_norm == "group" ? "default" : "layer_norm")},
      {"extractor_conv_feature_layers", Tree::text(conv_layers_text(c))},
      {"feature_grad_mult", Tree::real(t.feature_grad_mult)},
      {"conv_pos", Tree::integer(c.pos_kernel)},
      {"conv_pos_groups", Tree::integer(c.pos_groups)},
      {"encoder_layers", Tree::integer(c.layers)},
      {"encoder_embed_dim", Tree::integer(c.width)},
      {"encoder_ffn_embed_dim", Tree::integer(c.ffn)},
      {"encoder_attention_heads", Tree::integer(c.heads)},
      {"activation_fn", Tree::text("gelu")},
      {"layer_norm_first", Tree::boolean(c.pre_norm)},
      {"attention_type", Tree::text("original")},
      {"dropout", Tree::real(t.dropout)},
      {"attention_dropout", Tree::real(t.attention_dropout)},
      {"activation_dropout", Tree::real(t.activation_dropout)},
      {"encoder_layerdrop", Tree::real(t.layerdrop)},
      {"final_dim", Tree::integer(c.width)},
      {"out_layer_type", Tree::text(heads)},
      {"out_layer_inter_dim", Tree::integer(-1)},
      {"n_tasks", Tree::integer(static_cast<int64_t>(predicted.size()))},
      {"task_emb_type", Tree::text(heads)},
      {"pred_layer_id", Tree::list(std::move(predicted))},
  });
}

}  // namespace sft
