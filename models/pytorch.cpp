#include "models/pytorch.h"

#include <algorithm>
#include <array>
#include <filesystem>

#include "engine/formats/torch_file.h"
#include "models/fairseq_config.h"
#include "models/huggingface.h"
#include "models/pytorch_names.h"
#include "models/s3prl_downstream.h"
#include "models/vocabulary.h"

namespace sft {
namespace {

// ---- what a file is, by the keys at its top

struct Layout {
  std::string_view format;
  std::vector<std::string_view> keys;  // all of them
  std::string_view weights;            // of the state dict; empty: the root is one
};
const Layout kLayouts[] = {
    {"s3prl", {"model_weight", "model_cfg", "task_cfg"}, "model_weight"},
    {"s3prl", {"Distiller", "Config"}, "Distiller"},
    {"s3prl-downstream", {"Upstream", "Args"}, "Upstream"},
    {"fairseq", {"model", "cfg"}, "model"},
    {"fairseq", {"model", "args"}, "model"},
    {"lightning", {"state_dict"}, "state_dict"},
    {"state-dict", {"model"}, "model"},
};

std::vector<std::string_view> keys_of(PickleValue dict) {
  std::vector<std::string_view> keys;
  for (size_t i = 0; dict.is(PickleType::dict) && i + 1 < dict.size(); i += 2)
    if (dict[i].is(PickleType::text)) keys.push_back(dict[i].text());
  return keys;
}

std::string listed(const std::vector<std::string_view>& keys) {
  constexpr size_t kMost = 12;
  std::string out;
  for (size_t i = 0; i < std::min(keys.size(), kMost); ++i)
    out += (i ? ", " : "") + printable(keys[i], 60);
  return keys.size() > kMost ? out + ", ..." : out;
}

struct Source {
  std::string format;
  std::string arch;  // where the layout tells it
  PickleValue weights;
  FairseqSettings settings;        // model empty: the file has none
  std::vector<std::string> units;  // of a CTC head: the file's, or of dict.ltr.txt beside it
  bool own_units = false;          // the file is ours, and has them
  bool keeps_head() const { return own_units || !units.empty(); }
};

void add_fields(std::vector<PickleValue>& to, std::optional<PickleValue> value) {
  if (const auto fields = fields_of(value)) to.push_back(*fields);
}

// fairseq: cfg.model and cfg.task, or the flat args of old files; of a fine-tuned model those of
// the pre-trained one stand inside, as w2v_args.
void find_settings(PickleValue root, FairseqSettings& settings) {
  const auto cfg = fields_of(root.find("cfg"));
  const auto fields = cfg ? cfg : fields_of(root.find("args"));
  if (!fields) return;
  const auto nested = fields_of(fields->find("model"));
  const PickleValue model = nested ? *nested : *fields;
  add_fields(settings.task, fields->find("task"));
  if (const auto pretrained = fields_of(model.find("w2v_args"))) {
    add_fields(settings.model, pretrained->find("model"));
    settings.model.push_back(*pretrained);
    add_fields(settings.task, pretrained->find("task"));
    settings.task.push_back(*pretrained);
  }
  settings.model.push_back(model);
  settings.task.push_back(*fields);
}

// A Dictionary of fairseq: an object with its symbols.
std::vector<std::string> dictionary(PickleValue root) {
  std::vector<std::string> symbols;
  const auto tasks = fields_of(root.find("task_state"));
  const auto target = tasks ? tasks->find("target_dictionary") : std::nullopt;
  if (!target || !target->is(PickleType::object)) return symbols;
  const auto list = target->state().find("symbols");
  for (size_t i = 0; list && list->is(PickleType::list) && i < list->size(); ++i)
    symbols.emplace_back((*list)[i].text());
  return symbols;
}

// Where fairseq's programs look for the dictionary: dict.LABELS.txt, here beside the file.
std::string dictionary_path(const FairseqSettings& settings) {
  std::string labels = "ltr";
  for (const PickleValue& fields : settings.task)
    if (const auto value = fields.find("labels"); value && value->is(PickleType::text)) {
      const std::string name(value->text());
      const bool plain =
          std::all_of(name.begin(), name.end(), [](char c) { return std::isalnum(c); });
      if (plain && !name.empty()) labels = name;
      break;
    }
  const std::string folder = std::filesystem::path(settings.path).parent_path().string();
  return (folder.empty() ? "" : folder + "/") + "dict." + labels + ".txt";
}

// The units of a CTC head, if the file has one.
void find_units(Source& source, PickleValue root) {
  if (!source.weights.find("w2v_encoder.proj.weight")) return;
  source.units = dictionary(root);
  const auto ours = root.find(kOurKeys);
  source.own_units = ours && ours->is(PickleType::dict) && ours->find("sft.task.units");
  if (source.keeps_head()) return;
  const std::string path = dictionary_path(source.settings);
  if (std::filesystem::exists(path)) source.units = read_fairseq_dictionary(path);
}

Source source_of(const TorchFile& file, bool with_heads) {
  const PickleValue root = file.root();
  const std::vector<std::string_view> keys = keys_of(root);
  const auto has = [&](std::string_view key) {
    return std::find(keys.begin(), keys.end(), key) != keys.end();
  };
  if (has("Downstream") && !has("Upstream"))
    fail(Kind::input, Hint{"convert the model it was trained on"},
         "{}: a downstream checkpoint of s3prl without its Upstream, which was not fine-tuned",
         printable(file.path()));
  for (const Layout& layout : kLayouts) {
    if (!std::all_of(layout.keys.begin(), layout.keys.end(), has)) continue;
    const auto weights = fields_of(root.find(layout.weights));
    if (!weights)
      fail(Kind::input, "{}: {} is no dict of tensors", printable(file.path()), layout.weights);
    Source source{.format = std::string(layout.format), .weights = *weights};
    source.settings.path = file.path();
    if (layout.format == "fairseq") find_settings(root, source.settings);
    if (with_heads) find_units(source, root);
    if (const auto cfg = fields_of(root.find("cfg")); cfg && cfg->find("encoder_layers"))
      source.format = "unilm";  // WavLM and UniSpeech-SAT: flat
    add_fields(source.settings.model, root.find("model_cfg"));
    add_fields(source.settings.task, root.find("task_cfg"));
    if (layout.weights == "Distiller") {
      source.arch = "distilhubert";
      if (const auto config = fields_of(root.find("Config")))
        add_fields(source.settings.model, config->find("distiller"));
    }
    return source;
  }
  for (size_t i = 0; root.is(PickleType::dict) && i + 1 < root.size(); i += 2)
    if (TorchFile::is_tensor(root[i + 1])) return {.format = "state-dict", .weights = root};
  fail(Kind::input,
       "{}: no checkpoint of a known program; its top level has {} (expected model and cfg, "
       "model_weight and model_cfg, Upstream, state_dict, or tensors)",
       printable(file.path()), keys.empty() ? "no keys" : listed(keys));
}

// ---- tensors

struct Named {
  std::vector<TensorInfo> tensors;
  std::vector<std::string> remarks;
};

Named tensors_of(const TorchFile& file, PickleValue weights) {
  Named named;
  for (size_t i = 0; i + 1 < weights.size(); i += 2) {
    const std::string name(weights[i].text());
    if (TorchFile::is_tensor(weights[i + 1]))
      named.tensors.push_back(file.tensor(weights[i + 1], name));
    else
      named.remarks.push_back(fmt::format("{}: not a tensor, not kept", printable(name)));
  }
  return named;
}

struct Names {
  std::string prefix;  // of the encoder
  bool huggingface = false;
};

Names spelling_of(const std::string& path, const std::vector<TensorInfo>& tensors) {
  constexpr std::string_view kTheirs = "feature_projection.projection.weight";
  std::vector<std::string_view> names;
  for (const TensorInfo& tensor : tensors) names.push_back(tensor.name);
  const bool huggingface = std::any_of(
      names.begin(), names.end(), [&](std::string_view name) { return name.ends_with(kTheirs); });
  return {backbone_prefix(path, names, huggingface ? kTheirs : "post_extract_proj.weight"),
          huggingface};
}

// The model that s3prl's downstream program was started with.
std::string arch_of_upstream(PickleValue root) {
  constexpr std::pair<std::string_view, const char*> kUpstreams[] = {
      {"wav2vec2", "wav2vec2"}, {"hf_wav2vec2", "wav2vec2"},       {"hubert", "hubert"},
      {"wavlm", "wavlm"},       {"unispeech_sat", "unispeechsat"}, {"data2vec", "data2vecaudio"}};
  const auto args = fields_of(root.find("Args"));
  const auto upstream = args ? args->find("upstream") : std::nullopt;
  for (const auto& [name, arch] : kUpstreams)
    if (upstream && upstream->text().starts_with(name)) return arch;
  return "";
}

// By what the file says of itself, else by a tensor that only one family has.
std::string arch_of(const Source& source, const Names& names,
                    const std::vector<TensorInfo>& tensors, PickleValue root) {
  std::string arch = source.arch.empty() ? family_of(source.settings) : source.arch;
  if (!arch.empty()) return arch;
  const auto has = [&](std::string_view name) {
    return std::any_of(tensors.begin(), tensors.end(), [&](const TensorInfo& tensor) {
      return tensor.name == names.prefix + std::string(name);
    });
  };
  if (has("encoder.layers.0.self_attn.relative_attention_bias.weight") ||
      has("encoder.layers.0.attention.rel_attn_embed.weight"))
    return "wavlm";
  if (has("encoder.pos_conv_embed.layers.1.conv.weight")) return "data2vecaudio";
  if (source.format == "unilm") return "unispeechsat";
  for (const TorchFamily& family : torch_families())
    if (!family.sign.empty() && has(family.sign)) return std::string(family.arch);
  if (!names.huggingface && !has("feature_extractor.conv_layers.0.0.weight")) return "decoar2";
  arch = arch_of_upstream(root);
  return arch.empty() ? "hubert" : arch;  // without its heads wav2vec 2.0 is the same encoder
}

// Our name; empty: a part that is not kept. Inside the encoder every name must be known.
std::string our_name(const TensorInfo& tensor, const Source& source, const Names& names,
                     const TorchFamily& family) {
  const std::string_view full = tensor.name;
  if (source.keeps_head() && full.starts_with("w2v_encoder.proj."))
    return translate(ctc_head_names(), full, false);
  if (!full.starts_with(names.prefix)) return "";
  const std::string_view name = full.substr(names.prefix.size());
  if (names.huggingface) return name_from_huggingface(name);
  const std::string ours = translate(family.names, name, false);
  return ours.empty() ? translate(backbone_names(), name, false) : ours;
}

bool may_be_dropped(const TensorInfo& tensor, const Source& source, const Names& names,
                    const TorchFamily& family) {
  if (!std::string_view(tensor.name).starts_with(names.prefix)) return true;
  const std::string_view inside = std::string_view(tensor.name).substr(names.prefix.size());
  if (source.format == "state-dict" || source.format == "lightning")
    return !inside.starts_with("encoder.") && !inside.starts_with("feature_extractor.");
  return std::any_of(family.ignorable.begin(), family.ignorable.end(),
                     [&](std::string_view part) { return inside.starts_with(part); });
}

void add_tensors(StoredModel& model, const TorchFile& file, const Source& source,
                 const Names& names, std::vector<TensorInfo> tensors, bool with_heads) {
  const TorchFamily* family = family_named(model.config.arch);
  if (!family)
    fail(Kind::input, "{}: a {} model, which is not read from PyTorch's files",
         printable(file.path()), model.config.arch);
  std::map<std::string, size_t> kept;
  std::vector<TensorInfo> used;
  for (TensorInfo& tensor : tensors) {
    const std::string name = our_name(tensor, source, names, *family);
    if (name.empty() && !may_be_dropped(tensor, source, names, *family))
      fail(Kind::input, "{}: tensor {} {} is not one of a {} model", printable(file.path()),
           printable(tensor.name), tensor.shape, model.config.arch);
    if (name.empty()) {
      const bool head = with_heads && tensor.name.starts_with("w2v_encoder.proj.");
      model.remarks.push_back(fmt::format("{} {}: {}, not kept", printable(tensor.name),
                                          tensor.shape,
                                          head ? "a CTC head without its dictionary (expected in "
                                                 "the file, or dict.ltr.txt beside it)"
                                               : "not part of the encoder"));
      continue;
    }
    if (!kept.emplace(name, used.size()).second)
      fail(Kind::input, "{}: tensor {} is there twice, in two spellings", printable(file.path()),
           name);
    used.push_back(std::move(tensor));
  }
  const auto stored = std::make_shared<TensorFile>(file.file(std::move(used)));
  for (const auto& [name, i] : kept) {
    const TensorInfo& info = stored->tensors()[i];
    model.tensors[name] = {stored, info, our_shape(name, info.shape), info.dtype};
  }
}

// ---- configuration

const Shape* shape_of(const StoredModel& model, const std::string& name) {
  const auto it = model.tensors.find(name);
  return it == model.tensors.end() ? nullptr : &it->second.shape;
}

int64_t dim_of(const StoredModel& model, const std::string& name, int d, int rank) {
  const Shape* shape = shape_of(model, name);
  if (!shape || shape->rank() != rank)
    fail(Kind::input, "{}: tensor {} is {} (expected {} dimensions)", printable(model.path), name,
         shape ? text(*shape) : "missing", rank);
  return (*shape)[d];
}

void infer_convolutions(const StoredModel& model, Config& c) {
  const std::vector<int64_t> kStrides = {5, 2, 2, 2, 2, 2, 2};
  c.conv_dims.clear(), c.conv_kernels.clear();
  for (size_t i = 0; shape_of(model, fmt::format("conv.{}.weight", i)) && i < kStrides.size();
       ++i) {
    c.conv_dims.push_back(dim_of(model, fmt::format("conv.{}.weight", i), 0, 3));
    c.conv_kernels.push_back(dim_of(model, fmt::format("conv.{}.weight", i), 2, 3));
  }
  if (c.conv_dims.size() != kStrides.size())
    fail(Kind::input, "{}: {} convolutions, whose strides the file does not tell (expected {})",
         printable(model.path), c.conv_dims.size(), kStrides.size());
  c.conv_strides = kStrides;
  c.conv_bias = shape_of(model, "conv.0.bias") != nullptr;
  c.conv_norm = shape_of(model, "conv.1.norm.weight") ? "layer" : "group";
}

void infer_positions(const StoredModel& model, Config& c) {
  if (c.stacked_positions())
    for (c.pos_depth = 0; shape_of(model, fmt::format("pos_conv.{}.weight", c.pos_depth));)
      ++c.pos_depth;
  const std::string kernel =
      shape_of(model, "pos_conv.0.weight") ? "pos_conv.0.weight" : "pos_conv.0.weight_v";
  c.pos_kernel = dim_of(model, kernel, 2, 3);
  c.pos_groups = c.width / std::max<int64_t>(1, dim_of(model, kernel, 1, 3));
}

// The states that prediction heads are of: the file tells how many, not which.
void infer_distill(const StoredModel& model, Config& c) {
  c.pretrain.distill.clear();
  if (!shape_of(model, "pretrain.distill.1.weight")) return;
  const int64_t heads = dim_of(model, "pretrain.distill.1.weight", 0, 3);
  for (int64_t i = 1; i <= std::min<int64_t>(heads, 64); ++i) c.pretrain.distill.push_back(i);
}

// As in every released model: heads 64 wide up to a width of 1024, sixteen above; norms before
// attention, and normalised waveforms, where every convolution has a layer norm.
void infer_config(StoredModel& model) {
  Config& c = model.config;
  if (!c.log_mel()) infer_convolutions(model, c);
  c.width = dim_of(model, "feat_proj.weight", 0, 2);
  c.ffn = dim_of(model, "enc.0.ffn.up.weight", 0, 2);
  c.layers = 0;
  while (shape_of(model, fmt::format("enc.{}.ffn.up.weight", c.layers))) ++c.layers;
  infer_positions(model, c);
  infer_distill(model, c);
  c.heads = c.width <= 1024 ? c.width / 64 : 16;
  if (c.width % 64 != 0)
    fail(Kind::input, "{}: width {}, and nothing that tells its heads (expected a multiple of 64)",
         printable(model.path), c.width);
  c.normalize = c.conv_norm == "layer";
  c.pre_norm = c.normalize && !c.stacked_positions();
  check_config(c, model.path);
  model.remarks.push_back(fmt::format(
      "the file has no configuration; its shapes give {} heads, {} norms, waveforms {}", c.heads,
      c.pre_norm ? "early" : "late", c.normalize ? "normalised" : "as they are"));
}

// What a file that we wrote says beyond fairseq's own keys.
void read_our_keys(StoredModel& model, PickleValue root, bool with_heads) {
  const auto ours = root.find(kOurKeys);
  if (!ours || !ours->is(PickleType::dict)) return;
  Metadata metadata = metadata_from_config(model.config);
  std::vector<std::string> made;
  for (size_t i = 0; i + 1 < ours->size(); i += 2) {
    const std::string key((*ours)[i].text());
    const MetadataValue value = value_from_json((*ours)[i + 1].text(), model.path, key);
    if (key == kMadeKey) {
      const auto* names = std::get_if<std::vector<std::string>>(&value);
      if (names) made = *names;
    } else if (key != "general.architecture" && (with_heads || !key.starts_with("sft.task."))) {
      metadata.set(key, value);
    }
  }
  model.config = config_from_metadata(metadata, model.path);
  for (const std::string& name : made) {
    if (!model.tensors.erase(name)) continue;
    model.remarks.push_back(
        fmt::format("{}: made for its reader when it was written, not kept", name));
  }
}

void read_provenance(StoredModel& model, const std::string& format) {
  Metadata& provenance = model.config.provenance;
  const std::string name = std::filesystem::path(model.path).stem().string();
  if (!provenance.has("general.name")) provenance.set("general.name", name);
  if (provenance.has("sft.source.format")) return;
  provenance.set("sft.source.format", format);
  provenance.set("sft.source.name", name);
}

void add_ctc_head(StoredModel& model, const std::vector<std::string>& units) {
  const Shape* head = shape_of(model, "task.out.weight");
  if (!head || units.empty()) return;
  if (head->rank() != 2 || (*head)[0] != static_cast<int64_t>(units.size()))
    fail(Kind::input, Hint{"sft-convert --part encoder takes the model without its head"},
         "{}: the dictionary has {} symbols, but w2v_encoder.proj.weight is {}",
         printable(model.path), units.size(), *head);
  model.config.task = {.kind = "ctc", .head = "linear", .units = units};
}

void add_downstream_head(StoredModel& model, const TorchFile& file) {
  DownstreamHead head = downstream_head(file, model.config);
  const auto stored = std::make_shared<TensorFile>(file.file(std::move(head.tensors)));
  for (const TensorInfo& info : stored->tensors())
    model.tensors[info.name] = {stored, info, info.shape, info.dtype};
  model.config.task = std::move(head.task);
  model.in_file += head.in_file;
  for (std::string& remark : head.remarks) model.remarks.push_back(std::move(remark));
}

// Entries beside the state dict, of which nothing is read.
void remark_on_others(StoredModel& model, PickleValue root, const Source& source) {
  std::vector<std::string_view> read = {"cfg",      "args",   "model_cfg",
                                        "task_cfg", kOurKeys, "dictionaries_symbols"};
  if (source.arch == "distilhubert") read.push_back("Config");
  if (source.format == "s3prl-downstream")
    read.insert(read.end(), {"Args", "Config", "Featurizer", "Downstream"});
  std::vector<std::string_view> others;
  for (size_t i = 0; i + 1 < root.size(); i += 2)
    if (!(root[i + 1] == source.weights) && !root[i + 1].is(PickleType::none) &&
        std::find(read.begin(), read.end(), root[i].text()) == read.end())
      others.push_back(root[i].text());
  if (!others.empty() && !(root == source.weights))
    model.remarks.push_back("not kept: " + listed(others));
}

}  // namespace

bool is_torch_file(const std::string& path) {
  const InputFile file(path);
  std::array<char, 4> start{};
  const size_t known = std::min<uint64_t>(file.size(), start.size());
  file.read_at(0, std::as_writable_bytes(std::span(start).first(known)));
  return starts_as_torch({start.data(), known});
}

StoredModel open_torch_model(const std::string& path, bool with_heads) {
  const TorchFile file(path);
  const Source source = source_of(file, with_heads);
  Named named = tensors_of(file, source.weights);
  const Names names = spelling_of(path, named.tensors);
  StoredModel model{.path = path, .format = source.format};
  model.remarks = std::move(named.remarks);
  model.in_file = static_cast<int64_t>(named.tensors.size());
  const std::string arch = arch_of(source, names, named.tensors, file.root());
  const bool ours = file.root().find(kOurKeys).has_value();
  const bool told = !source.settings.model.empty();
  model.config = told ? config_of(source.settings, arch) : default_config(arch, path);
  add_tensors(model, file, source, names, std::move(named.tensors), with_heads);
  if (!told && !ours) infer_config(model);
  if (const Shape* proj = shape_of(model, "pretrain.proj.weight"); proj && proj->rank() == 2)
    model.config.pretrain.dim = (*proj)[0];
  add_ctc_head(model, source.units);
  if (with_heads && source.format == "s3prl-downstream" && file.root().find("Downstream"))
    add_downstream_head(model, file);
  read_our_keys(model, file.root(), with_heads);
  read_provenance(model, source.format);
  remark_on_others(model, file.root(), source);
  return model;
}

}  // namespace sft
