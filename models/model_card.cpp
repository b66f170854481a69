#include "models/model_card.h"

#include <map>

#include "engine/check.h"
#include "models/checkpoint.h"

namespace sft {
namespace {

int64_t backbone_size(const std::vector<TensorSpec>& tensors) {
  int64_t size = 0;
  for (const TensorSpec& tensor : tensors)
    if (is_backbone(tensor.name)) size += tensor.shape.count();
  return size;
}

// Without the quotes that text() puts around strings.
std::string said(const MetadataValue& value) {
  const auto* string = std::get_if<std::string>(&value);
  return printable(string ? *string : text(value));
}

// What the hub reads: a front matter of YAML. A JSON string is one of YAML.
std::string front_matter(const Config& config) {
  std::string text = "---\nlibrary_name: transformers\n";
  const bool ctc = config.task.kind == "ctc";
  text += fmt::format("pipeline_tag: {}\n",
                      ctc ? "automatic-speech-recognition" : "feature-extraction");
  text += fmt::format("tags:\n- speech\n- {}\n", config.arch);
  const MetadataValue* license = config.provenance.find("general.license");
  if (license) text += fmt::format("license: {}\n", value_to_json(*license));
  return text + "---\n";
}

std::string usage(const Config& config, std::string_view class_name) {
  const bool ctc = config.task.kind == "ctc";
  std::string text = fmt::format(
      "```python\nfrom transformers import {0}{1}\n\nmodel = {0}.from_pretrained(FOLDER)\n",
      class_name, ctc ? ", Wav2Vec2Processor" : "");
  if (ctc) text += "processor = Wav2Vec2Processor.from_pretrained(FOLDER)\n";
  return text + "```\n";
}

std::string head(const Config::Task& task) {
  if (task.kind.empty()) return "";
  const auto blank = static_cast<size_t>(task.blank);
  return fmt::format("Its head is linear, trained with CTC: {} units, the blank is `{}` ({}).\n\n",
                     task.units.size(), printable(task.units[blank], 60), blank);
}

// Where it comes from, as the model's own keys say it.
std::string origins(const Config& config) {
  std::string rows;
  std::map<std::string, MetadataValue> sorted;
  for (const auto& [key, value] : config.provenance.entries()) sorted[key] = value;
  for (const auto& [key, value] : sorted)
    rows += fmt::format("- `{}`: {}\n", printable(key), said(value));
  return rows.empty() ? "" : "\n" + rows;
}

}  // namespace

std::string model_card(const Config& config, std::string_view class_name,
                       const std::vector<TensorSpec>& tensors) {
  const MetadataValue* name = config.provenance.find("general.name");
  const std::string title = name ? said(*name) : std::string(class_name);
  return fmt::format(
      "{}\n# {}\n\n`{}`: {} layers of {}, {} parameters in the encoder. Input: 16 kHz, "
      "{}.\n\n{}{}{}",
      front_matter(config), title, class_name, config.layers, config.width,
      size_label(backbone_size(tensors)),
      config.normalize ? "each utterance to mean 0, variance 1" : "as it is", head(config.task),
      usage(config, class_name), origins(config));
}

}  // namespace sft
