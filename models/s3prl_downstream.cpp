#include "models/s3prl_downstream.h"

#include <algorithm>
#include <array>

#include "models/fairseq_config.h"
#include "models/names.h"
#include "models/task_head.h"

namespace sft {
namespace {

constexpr std::array kNames = {
    Spelling{"task.proj.*", "projector.*"},
    Spelling{"task.rnn.#.fwd.w_ih", "model.rnns.#.layer.weight_ih_l0"},
    Spelling{"task.rnn.#.fwd.w_hh", "model.rnns.#.layer.weight_hh_l0"},
    Spelling{"task.rnn.#.fwd.b_ih", "model.rnns.#.layer.bias_ih_l0"},
    Spelling{"task.rnn.#.fwd.b_hh", "model.rnns.#.layer.bias_hh_l0"},
    Spelling{"task.rnn.#.bwd.w_ih", "model.rnns.#.layer.weight_ih_l0_reverse"},
    Spelling{"task.rnn.#.bwd.w_hh", "model.rnns.#.layer.weight_hh_l0_reverse"},
    Spelling{"task.rnn.#.bwd.b_ih", "model.rnns.#.layer.bias_ih_l0_reverse"},
    Spelling{"task.rnn.#.bwd.b_hh", "model.rnns.#.layer.bias_hh_l0_reverse"},
};
constexpr std::array kFrameOutput = {Spelling{"task.out.*", "model.linear.*"}};
constexpr std::array kMeanOutput = {Spelling{"task.out.*", "model.post_net.linear.*"}};
constexpr std::string_view kScore = "best_score";  // a buffer, not of the head

constexpr std::string_view kCtc[] = {"asr", "ctc"};
constexpr std::string_view kClassify[] = {"speech_commands", "voxceleb1", "emotion"};

template <size_t N>
bool among(const std::string_view (&list)[N], std::string_view name) {
  return std::find(std::begin(list), std::end(list), name) != std::end(list);
}

std::optional<PickleValue> at(std::optional<PickleValue> value,
                              std::initializer_list<std::string_view> keys) {
  for (std::string_view key : keys) {
    const auto fields = fields_of(value);
    if (!fields) return {};
    value = fields->find(key);
  }
  return value;
}

std::string text_at(PickleValue root, std::initializer_list<std::string_view> keys) {
  const auto value = at(root, keys);
  return value ? std::string(value->text()) : "";
}

// Why this head is not one of ours: thrown and caught in this file, where it becomes a remark.
struct NotOurs {
  std::string why;
};

class Reader {
 public:
  Reader(const TorchFile& file, const Config& config)
      : file_(file), root_(file.root()), config_(config) {}

  DownstreamHead read() {
    try {
      read_head();
      read_states();
      check_shapes();
      name_units();
    } catch (const NotOurs& other) {
      head_.remarks.push_back(fmt::format(
          "Downstream ({}): {}; the head, with Featurizer, is not kept", name_, other.why));
      head_.task = {};
      head_.tensors.clear();
    }
    return std::move(head_);
  }

 private:
  std::vector<TensorInfo> tensors_of(std::string_view key) {
    std::vector<TensorInfo> tensors;
    const auto state = fields_of(root_.find(key));
    for (size_t i = 0; state && i + 1 < state->size(); i += 2)
      if (TorchFile::is_tensor((*state)[i + 1]))
        tensors.push_back(file_.tensor((*state)[i + 1], std::string((*state)[i].text())));
    head_.in_file += std::ssize(tensors);
    return tensors;
  }

  std::string our_name(std::string_view theirs) const {
    const std::string ours = translate(kNames, theirs, false);
    if (!ours.empty()) return ours;
    return translate(head_.task.kind == "ctc" ? std::span<const Spelling>(kFrameOutput)
                                              : std::span<const Spelling>(kMeanOutput),
                     theirs, false);
  }

  const TensorInfo* find(std::string_view name) const {
    for (const TensorInfo& tensor : head_.tensors)
      if (tensor.name == name) return &tensor;
    return nullptr;
  }

  void read_head() {
    name_ = text_at(root_, {"Args", "downstream"});
    std::vector<TensorInfo> tensors = tensors_of("Downstream");
    featurizer_ = tensors_of("Featurizer");
    if (!among(kCtc, name_) && !among(kClassify, name_)) throw NotOurs{"not a task of ours"};
    head_.task.kind = among(kCtc, name_) ? "ctc" : "classify";
    std::string unknown;
    for (TensorInfo& tensor : tensors) {
      if (tensor.name == kScore) {
        head_.remarks.push_back(
            fmt::format("{} {}: not part of the head, not kept", tensor.name, tensor.shape));
        continue;
      }
      const std::string ours = our_name(tensor.name);
      if (ours.empty())
        unknown += fmt::format("{}{} {}", unknown.empty() ? "" : ", ", printable(tensor.name),
                               tensor.shape);
      tensor.name = ours;
      head_.tensors.push_back(std::move(tensor));
    }
    if (!unknown.empty()) throw NotOurs{"no part of a head of ours: " + unknown};
    if (!find("task.out.weight")) throw NotOurs{"it has no output layer"};
    shape_head();
  }

  void shape_head() {
    Config::Task& task = head_.task;
    const TensorInfo* proj = find("task.proj.weight");
    while (find(fmt::format("task.rnn.{}.fwd.w_ih", layers_))) ++layers_;
    task.head = task.kind == "classify" ? "mean"
                : layers_ > 0           ? "blstm"
                : proj                  ? "projector"
                                        : "linear";
    if (proj && proj->shape.rank() == 2) task.width = proj->shape[0];
    if (layers_ > 0) {
      task.layers = layers_;
      check_rate();
    }
  }

  // Every frame is kept: neither the first layer nor a later one takes one of several.
  void check_rate() const {
    const auto rnns =
        at(root_, {"Config", "downstream_expert", name_ == "asr" ? "modelrc" : "model", "RNNs"});
    const auto total = at(rnns, {"total_rate"}), rates = at(rnns, {"sample_rate"});
    const int64_t rate = total ? total->integer().value_or(0) : config_.hop();
    if (rate != -1 && rate != config_.hop())
      throw NotOurs{fmt::format("total_rate is {} (the encoder's is {})", rate, config_.hop())};
    for (size_t i = 0; rates && i < rates->size(); ++i)
      if ((*rates)[i].integer() != 1) throw NotOurs{"it drops frames (sample_rate is not 1)"};
  }

  // The weighted sum of all hidden states, or the last one.
  void read_states() {
    const auto normalised = at(root_, {"Args", "upstream_feature_normalize"});
    if (normalised && normalised->integer() == 1)
      throw NotOurs{"it normalises the hidden states (upstream_feature_normalize)"};
    for (TensorInfo& tensor : featurizer_) {
      if (tensor.name != "weights") throw NotOurs{"Featurizer has " + printable(tensor.name)};
      tensor.name = "task.layer_weights";
      head_.tensors.push_back(std::move(tensor));
      weighted_ = true;
    }
    if (weighted_) return;
    const std::string selection = text_at(root_, {"Args", "upstream_feature_selection"});
    const auto layer = at(root_, {"Args", "upstream_layer_selection"});
    const bool last =
        layer && layer->integer()
            ? layer->integer() == config_.layers
            : selection == (config_.pretrain.distill.empty() ? "last_hidden_state" : "paper");
    if (!last)
      throw NotOurs{fmt::format("it reads neither all hidden states nor the last one ({})",
                                selection.empty() ? "not told" : printable(selection))};
  }

  void check_shapes() {
    const TensorInfo* out = find("task.out.weight");
    const int64_t units = out->shape.rank() == 2 ? out->shape[0] : 0;
    if (units < 1 || units > 1 << 16 || head_.task.width > 1 << 16 || layers_ > 16)
      throw NotOurs{"its sizes are out of range"};
    head_.task.units.assign(static_cast<size_t>(units), "");
    NamedTaskHead wanted{
        TaskHead(head_.task, config_.width, weighted_ ? static_cast<int>(config_.states()) : 0)};
    const std::vector<TensorSpec> specs = tensor_specs(wanted);
    for (const TensorSpec& spec : specs) {
      const TensorInfo* tensor = find(spec.name);
      if (!tensor || tensor->shape != spec.shape)
        throw NotOurs{fmt::format("{} is {} (expected {})", spec.name,
                                  tensor ? text(tensor->shape) : "missing", spec.shape)};
    }
    if (specs.size() != head_.tensors.size()) throw NotOurs{"it has tensors twice"};
  }

  // Lists of units stand in files beside the checkpoint. Where it is s3prl's own list, it is known.
  void name_units() {
    std::vector<std::string> known;
    if (name_ == "asr") known = {"<s>", "<pad>", "</s>", "<unk>"};
    if (name_ == "ctc") known = {"<pad>", "<eos>", "<unk>"};
    const std::string list = text_at(root_, {"Config", "downstream_expert", "datarc", "dict_path"});
    const bool characters = name_ == "asr" && head_.task.units.size() == 32 &&
                            (list.empty() || list.ends_with("char.dict"));
    if (characters)
      for (char c : std::string_view("|ETAONIHSRDLUMWCFGYPBVK'XJQZ")) known.emplace_back(1, c);
    if (name_ == "speech_commands" && head_.task.units.size() == 12)
      known = {"yes", "no",  "up",   "down", "left",      "right",
               "on",  "off", "stop", "go",   "_unknown_", "_silence_"};
    for (size_t i = 0; i < head_.task.units.size(); ++i)
      head_.task.units[i] = i < known.size() ? known[i] : fmt::format("{}", i);
    head_.remarks.push_back(
        known.size() >= head_.task.units.size()
            ? fmt::format("Downstream ({}): its {} units are taken to be s3prl's own", name_,
                          head_.task.units.size())
            : fmt::format("Downstream ({}): the names of its units are not in the file, so they "
                          "are numbers",
                          name_));
  }

  const TorchFile& file_;
  PickleValue root_;
  const Config& config_;
  DownstreamHead head_;
  std::string name_;
  std::vector<TensorInfo> featurizer_;
  int64_t layers_ = 0;
  bool weighted_ = false;
};

}  // namespace

DownstreamHead downstream_head(const TorchFile& file, const Config& config) {
  return Reader(file, config).read();
}

}  // namespace sft
