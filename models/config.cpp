#include "models/config.h"

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "engine/check.h"
#include "engine/nearest.h"

namespace sft {

namespace {
constexpr int64_t kLogMelBins = 80;  // every second frame of 25 ms each 10 ms
constexpr int64_t kLogMelHop = 320, kLogMelReceptive = 400;
constexpr int64_t kLogMelMinSamples = 560;  // two frames at 100 Hz: one has no variance
}  // namespace

int64_t Config::frame_width() const { return log_mel() ? kLogMelBins : conv_dims.back(); }

int64_t Config::min_samples() const { return log_mel() ? kLogMelMinSamples : receptive(); }

int64_t Config::hop() const {
  if (log_mel()) return kLogMelHop;
  int64_t hop = 1;
  for (int64_t stride : conv_strides) hop *= stride;
  return hop;
}

int64_t Config::receptive() const {
  if (log_mel()) return kLogMelReceptive;
  int64_t receptive = 1, hop = 1;
  for (size_t i = 0; i < conv_kernels.size(); ++i) {
    receptive += (conv_kernels[i] - 1) * hop;
    hop *= conv_strides[i];
  }
  return receptive;
}

int64_t Config::frames(int64_t samples) const {
  return samples < min_samples() ? 0 : (samples - receptive()) / hop() + 1;
}

namespace {

bool is_size(int64_t n) { return n >= 1 && n <= 1 << 20; }

// Throws the first thing that does not hold.
struct Requirement {
  std::string_view where;
  void operator()(bool ok, std::string_view what) const {
    if (!ok) fail(Kind::input, "{}: configuration: {}", printable(where), what);
  }
};

Config named(std::string_view arch) {
  Config c;
  c.arch = arch;
  return c;
}

Config data2vec_family() {
  Config c = named("data2vecaudio");
  c.conv_norm = "layer", c.normalize = true;
  c.pos_kernel = 19, c.pos_depth = 5;
  return c;
}

// input_dropout: s3prl's module has none.
Config distilhubert_family() {
  Config c = named("distilhubert");
  c.layers = 2, c.feat_norm = c.mask_emb = false;
  c.train.activation_dropout = 0.1, c.train.input_dropout = 0, c.train.layerdrop = 0;
  return c;
}

Config decoar2_family() {
  Config c = named("decoar2");
  c.conv_dims = c.conv_kernels = c.conv_strides = {};
  c.conv_norm = "none", c.feat_norm = c.mask_emb = false;
  return c;
}

// The architectures, each as a model of it is where its file does not say.
const std::vector<Config>& families() {
  static const std::vector<Config> table = {
      named("hubert"),   named("wav2vec2"),     named("unispeechsat"), named("wavlm"),
      data2vec_family(), distilhubert_family(), decoar2_family(),
  };
  return table;
}

std::vector<std::string> architectures() {
  std::vector<std::string> names;
  for (const Config& family : families()) names.push_back(family.arch);
  return names;
}

const Config& family(std::string_view arch, std::string_view where) {
  for (const Config& family : families())
    if (family.arch == arch) return family;
  fail(Kind::input, "{}: configuration: architecture {} (expected {})", printable(where),
       printable(arch), fmt::join(architectures(), ", "));
}

void check_convolutions(const Requirement& require, const Config& c) {
  if (c.log_mel()) return;
  const size_t convs = c.conv_dims.size();
  require(
      convs >= 1 && convs <= 16 && c.conv_kernels.size() == convs && c.conv_strides.size() == convs,
      "conv.dims, conv.kernels and conv.strides are not lists of one length (1..16)");
  int64_t hop = 1;
  for (size_t i = 0; i < convs; ++i) {
    require(is_size(c.conv_dims[i]), "conv.dims has a value that is not in 1..2^20");
    require(
        c.conv_strides[i] >= 1 && c.conv_kernels[i] >= c.conv_strides[i] && c.conv_kernels[i] <= 64,
        "conv.kernels and conv.strides: expected 1 <= stride <= kernel <= 64");
    hop *= c.conv_strides[i];
    require(hop <= 1 << 16, "conv.strides: their product is above 2^16");
  }
  require(c.conv_norm == "group" || c.conv_norm == "layer", "conv.norm is not group or layer");
}

void check_encoder(const Requirement& require, const Config& c) {
  require(c.layers >= 1 && c.layers <= 64, "block_count is not in 1..64");
  require(is_size(c.width) && is_size(c.ffn) && is_size(c.heads),
          "embedding_length, feed_forward_length or attention.head_count is not in 1..2^20");
  require(
      c.width % c.heads == 0,
      fmt::format("attention.head_count {} does not divide embedding_length {}", c.heads, c.width));
  require(c.head_width() % 4 == 0 && c.head_width() <= 128,
          fmt::format("heads are {} wide (expected a multiple of 4, at most 128)", c.head_width()));
  require(c.norm_eps > 0 && c.norm_eps < 1, "attention.layer_norm_epsilon is not in (0, 1)");
  require(c.normalize_eps > 0 && c.normalize_eps < 1, "input.normalize_eps is not in (0, 1)");
  require(c.pos_kernel >= 1 && c.pos_kernel <= 1024, "pos_conv.kernel is not in 1..1024");
  require(c.pos_depth >= 1 && c.pos_depth <= 16, "pos_conv.depth is not in 1..16");
  require(!c.stacked_positions() || (c.conv_norm == "layer" && !c.pre_norm),
          "data2vecaudio: conv.norm is not layer, or attention.pre_norm is true");
  require(
      c.pos_groups >= 1 && c.width % c.pos_groups == 0,
      fmt::format("pos_conv.groups {} does not divide embedding_length {}", c.pos_groups, c.width));
}

void check_relative_bias(const Requirement& require, const Config& c) {
  if (!c.relative_bias()) return;
  require(c.rel_buckets >= 4 && c.rel_buckets % 4 == 0 && c.rel_buckets <= 1 << 16,
          "attention.rel_buckets is not a multiple of 4 in 4..2^16");
  require(c.rel_max_distance > c.rel_buckets / 4 && c.rel_max_distance <= 1 << 16,
          fmt::format("attention.rel_max_distance {} is not in {}..2^16", c.rel_max_distance,
                      c.rel_buckets / 4 + 1));
}

void check_training(const Requirement& require, const Config& c) {
  const auto& t = c.train;
  for (double p : {t.dropout, t.attention_dropout, t.activation_dropout, t.input_dropout,
                   t.feature_dropout, t.layerdrop})
    require(p >= 0 && p < 1, "a dropout is not in [0, 1)");
  require(t.feature_grad_mult >= 0 && t.feature_grad_mult <= 1,
          "train.feature_grad_mult is not in [0, 1]");
  require(t.mask_prob >= 0 && t.mask_prob <= 1, "train.mask_prob is not in [0, 1]");
  require(is_size(t.mask_length), "train.mask_length is not in 1..2^20");
  require(is_size(c.pretrain.dim) && is_size(c.pretrain.vq_groups) && is_size(c.pretrain.vq_vars),
          "a size of pretrain.* is not in 1..2^20");
  require(c.states() <= 65, "pretrain.distill has too many states");
  require(c.pretrain.temp > 0 && c.pretrain.temp <= 1e3, "pretrain.temp is not in (0, 1000]");
}

void check_task(const Requirement& require, const Config::Task& task) {
  if (task.kind.empty()) return;
  require(task.kind == "ctc" || task.kind == "classify", "sft.task.kind is not ctc or classify");
  const bool frames = task.head == "linear" || task.head == "projector" || task.head == "blstm";
  require(task.kind == "ctc" ? frames : task.head == "mean",
          "sft.task.head is not one of this kind (ctc: linear, projector, blstm; classify: mean)");
  require(is_size(task.width) && task.layers >= 1 && task.layers <= 16,
          "sft.task.width or sft.task.layers is out of range");
  require(!task.units.empty(), "sft.task.units is empty");
  require(task.blank >= 0 && task.blank < static_cast<int64_t>(task.units.size()),
          "sft.task.blank is not one of the units");
}

}  // namespace

void check_config(const Config& config, std::string_view where) {
  const Requirement require{where};
  family(config.arch, where);
  check_encoder(require, config);
  check_relative_bias(require, config);
  check_convolutions(require, config);
  check_training(require, config);
  check_task(require, config.task);
}

namespace {

// One member and its key; the same list reads and writes.
class Fields {
 public:
  Fields(Config& config, const Metadata* from, Metadata* to) : c_(config), from_(from), to_(to) {}

  void all() {
    const std::string a = c_.arch + ".";
    field(a + "block_count", c_.layers);
    field(a + "embedding_length", c_.width);
    field(a + "feed_forward_length", c_.ffn);
    field(a + "attention.head_count", c_.heads);
    field(a + "attention.layer_norm_epsilon", c_.norm_eps);
    field(a + "attention.pre_norm", c_.pre_norm);
    if (c_.relative_bias()) {
      field(a + "attention.rel_buckets", c_.rel_buckets);
      field(a + "attention.rel_max_distance", c_.rel_max_distance);
    }
    if (!c_.log_mel()) waveform(a);
    field(a + "feat_norm", c_.feat_norm);
    field(a + "pos_conv.kernel", c_.pos_kernel);
    field(a + "pos_conv.groups", c_.pos_groups);
    if (c_.stacked_positions()) field(a + "pos_conv.depth", c_.pos_depth);
    field(a + "train.dropout", c_.train.dropout);
    field(a + "train.attention_dropout", c_.train.attention_dropout);
    field(a + "train.activation_dropout", c_.train.activation_dropout);
    field(a + "train.input_dropout", c_.train.input_dropout);
    field(a + "train.feature_dropout", c_.train.feature_dropout);
    field(a + "train.layerdrop", c_.train.layerdrop);
    field(a + "train.feature_grad_mult", c_.train.feature_grad_mult);
    field(a + "train.mask_prob", c_.train.mask_prob);
    field(a + "train.mask_length", c_.train.mask_length);
    field(a + "pretrain.dim", c_.pretrain.dim);
    field(a + "pretrain.temp", c_.pretrain.temp);
    if (c_.arch == "distilhubert") {
      field(a + "mask_emb", c_.mask_emb);
      if (from_ || !c_.pretrain.distill.empty()) field(a + "pretrain.distill", c_.pretrain.distill);
    }
    if (c_.arch == "wav2vec2") {
      field(a + "pretrain.vq.groups", c_.pretrain.vq_groups);
      field(a + "pretrain.vq.vars", c_.pretrain.vq_vars);
    }
    if (to_ ? !c_.task.kind.empty() : from_->has("sft.task.kind")) task();
  }
  const std::set<std::string, std::less<>>& keys() const { return keys_; }

 private:
  void waveform(const std::string& a) {
    field(a + "conv.dims", c_.conv_dims);
    field(a + "conv.kernels", c_.conv_kernels);
    field(a + "conv.strides", c_.conv_strides);
    field(a + "conv.bias", c_.conv_bias);
    field(a + "conv.norm", c_.conv_norm);
    field(a + "input.normalize", c_.normalize);
    field(a + "input.normalize_eps", c_.normalize_eps);
  }
  void task() {
    field("sft.task.kind", c_.task.kind);
    field("sft.task.head", c_.task.head);
    field("sft.task.width", c_.task.width);
    field("sft.task.layers", c_.task.layers);
    field("sft.task.blank", c_.task.blank);
    field("sft.task.units", c_.task.units);
  }

  static void get(const Metadata& m, const std::string& key, int64_t& v) { v = m.integer(key); }
  static void get(const Metadata& m, const std::string& key, double& v) { v = m.real(key); }
  static void get(const Metadata& m, const std::string& key, bool& v) { v = m.boolean(key); }
  static void get(const Metadata& m, const std::string& key, std::string& v) { v = m.string(key); }
  static void get(const Metadata& m, const std::string& key, std::vector<int64_t>& v) {
    v = m.integers(key);
  }
  static void get(const Metadata& m, const std::string& key, std::vector<std::string>& v) {
    v = m.strings(key);
  }

  template <class T>
  void field(std::string key, T& value) {
    if (to_) to_->set(key, value);
    if (from_ && from_->has(key)) get(*from_, key, value);
    keys_.insert(std::move(key));
  }

  Config& c_;
  const Metadata* from_;
  Metadata* to_;
  std::set<std::string, std::less<>> keys_;
};

Config large(std::string_view arch, bool conv_bias) {
  Config c = named(arch);
  c.layers = 24, c.width = 1024, c.ffn = 4096, c.heads = 16;
  c.pre_norm = c.normalize = true;
  c.conv_norm = "layer", c.conv_bias = conv_bias;
  c.train = {.dropout = 0,
             .attention_dropout = 0,
             .input_dropout = 0,
             .feature_dropout = 0,
             .layerdrop = 0,
             .feature_grad_mult = 1};
  c.pretrain.dim = 768;
  return c;
}

// 48 layers: HuBERT XLarge, XLS-R 1B and 2B.
Config deep(Config c, int64_t width) {
  c.layers = 48, c.width = width, c.ffn = 4 * width, c.pretrain.dim = 1024;
  return c;
}

Config wav2vec2(Config c) {
  c.arch = "wav2vec2";
  c.train.mask_prob = 0.65;
  return c;
}

// As large, but with group norm and norms behind the residuals, like Base.
Config large_ls960() {
  Config c = wav2vec2(Config());
  c.layers = 24, c.width = 1024, c.ffn = 4096, c.heads = 16, c.pretrain.dim = 768;
  return c;
}

Config data2vec_large() {
  Config c = data2vec_family();
  c.layers = 24, c.width = 1024, c.ffn = 4096, c.heads = 16;
  return c;
}

Config distilhubert() {
  Config c = distilhubert_family();
  c.pretrain.distill = {4, 12};
  return c;
}

// Small enough to pre-train on two cores in a minute; tools/demo.sh.
Config tiny() {
  Config c;
  c.layers = 4, c.width = 128, c.ffn = 512, c.heads = 4;
  c.conv_dims = {32, 32, 64, 64, 128, 128, 128};
  c.pos_kernel = 32, c.pos_groups = 8;
  c.normalize = true;
  c.pretrain.dim = 64;
  c.train.layerdrop = 0;
  return c;
}

// Says nothing of the model itself; general.architecture is a member of its own.
bool of_container(std::string_view key) {
  constexpr std::string_view kKeys[] = {"general.architecture", "general.file_type",
                                        "general.alignment", "general.quantization_version"};
  return std::find(std::begin(kKeys), std::end(kKeys), key) != std::end(kKeys);
}

const std::map<std::string, Config, std::less<>>& presets() {
  static const auto table = [] {
    std::map<std::string, Config, std::less<>> t;
    t["hubert-base"] = Config();
    t["hubert-large"] = large("hubert", false);
    t["hubert-xlarge"] = deep(large("hubert", false), 1280);
    t["hubert-tiny"] = tiny();
    t["wav2vec2-base"] = wav2vec2(Config());
    t["wav2vec2-large-ls960"] = large_ls960();
    t["wav2vec2-large"] = wav2vec2(large("wav2vec2", true));
    t["xlsr-53"] = t["xls-r-300m"] = t["wav2vec2-large"];
    t["xls-r-1b"] = deep(t["wav2vec2-large"], 1280);
    t["xls-r-2b"] = deep(t["wav2vec2-large"], 1920);
    t["wav2vec2-tiny"] = tiny();
    t["wav2vec2-tiny"].arch = "wav2vec2";
    t["wav2vec2-tiny"].pretrain.vq_vars = 32;
    t["unispeech-sat-base"] = named("unispeechsat");
    t["unispeech-sat-large"] = large("unispeechsat", false);
    t["wavlm-base"] = t["wavlm-base-plus"] = named("wavlm");
    t["wavlm-large"] = large("wavlm", false);
    t["wavlm-tiny"] = tiny();
    t["wavlm-tiny"].arch = "wavlm";
    t["data2vec-audio-base"] = data2vec_family();
    t["data2vec-audio-large"] = data2vec_large();
    t["distilhubert"] = distilhubert();
    t["decoar2"] = decoar2_family();
    return t;
  }();
  return table;
}

}  // namespace

namespace {

[[noreturn]] void unknown_key(std::string_view key, const std::set<std::string, std::less<>>& known,
                              std::string_view where) {
  const std::vector<std::string> names(known.begin(), known.end());
  fail(Kind::input, Hint{did_you_mean(key, names)}, "{}: key {} is not known", printable(where),
       printable(key));
}

}  // namespace

Config config_from_metadata(const Metadata& metadata, std::string_view where) {
  Config config = family(metadata.string("general.architecture"), where);
  Fields fields(config, &metadata, nullptr);
  fields.all();
  config.provenance = Metadata(std::string(where));
  for (const auto& [key, value] : metadata.entries()) {
    if (fields.keys().contains(key) || of_container(key)) continue;
    if (key.starts_with(config.arch + ".") || key.starts_with("sft.task."))
      unknown_key(key, fields.keys(), where);
    config.provenance.set(key, value);
  }
  check_config(config, where);
  return config;
}

Metadata metadata_from_config(const Config& config) {
  Metadata metadata;
  metadata.set("general.architecture", config.arch);
  Config copy = config;
  Fields(copy, nullptr, &metadata).all();
  // In the order of their names, so that every way through other containers gives the same bytes.
  std::map<std::string_view, const MetadataValue*> others;
  for (const auto& [key, value] : config.provenance.entries()) others[key] = &value;
  for (const auto& [key, value] : others) metadata.set(std::string(key), *value);
  return metadata;
}

namespace {

using Json = nlohmann::json;

template <class Is>
bool all_of(const Json& list, Is is) {
  return std::all_of(list.begin(), list.end(), is);
}

}  // namespace

std::string value_to_json(const MetadataValue& value) {
  return std::visit(
      [](const auto& v) { return Json(v).dump(-1, ' ', false, Json::error_handler_t::replace); },
      value);
}

MetadataValue value_from_json(std::string_view text, std::string_view where, std::string_view key) {
  const Json json = Json::parse(text, nullptr, false);
  if (json.is_boolean()) return json.get<bool>();
  if (json.is_number_unsigned()) return json.get<uint64_t>();
  if (json.is_number_integer()) return json.get<int64_t>();
  if (json.is_number()) return json.get<double>();
  if (json.is_string()) return json.get<std::string>();
  if (json.is_array()) {
    if (all_of(json, [](const Json& x) { return x.is_string(); }))
      return json.get<std::vector<std::string>>();
    if (all_of(json, [](const Json& x) { return x.is_number_integer(); }))
      return json.get<std::vector<int64_t>>();
    if (all_of(json, [](const Json& x) { return x.is_number(); }))
      return json.get<std::vector<double>>();
  }
  fail(Kind::input, "{}: {} is {} (expected a number, a string, true or false, or a list)",
       printable(where), printable(key), printable(text, 60));
}

Metadata metadata_to_strings(const Metadata& metadata) {
  Metadata strings;
  strings.set(std::string(kFormatNote), std::string("1"));
  for (const auto& [key, value] : metadata.entries()) strings.set(key, value_to_json(value));
  return strings;
}

Metadata metadata_from_strings(const Metadata& strings, std::string_view where) {
  Metadata metadata{std::string(where)};
  for (const auto& [key, value] : strings.entries()) {
    if (key == kFormatNote || key == "format") continue;
    metadata.set(key, value_from_json(strings.string(key), where, key));
  }
  return metadata;
}

Config preset(std::string_view name) {
  const auto it = presets().find(name);
  if (it == presets().end())
    fail(Kind::usage, Hint{did_you_mean(name, preset_names())},
         "there is no preset {} (expected {})", printable(name), fmt::join(preset_names(), ", "));
  return it->second;
}

std::vector<std::string> preset_names() {
  std::vector<std::string> names;
  for (const auto& [name, config] : presets()) names.push_back(name);
  return names;
}

}  // namespace sft
