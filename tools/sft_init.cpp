// sft-init: a model with random values (docs/sft-init.md).
#include <nlohmann/json.hpp>

#include "engine/nearest.h"
#include "models/checkpoint.h"
#include "models/initialise.h"
#include "tools/cli.h"

using namespace sft;

namespace {

bool parse_bool(std::string_view key, const std::string& text) {
  if (text == "true" || text == "1") return true;
  if (text == "false" || text == "0") return false;
  fail(Kind::usage, "--set {}: '{}' (expected true or false)", key, printable(text));
}

std::vector<int64_t> parse_list(std::string_view name, const std::string& text) {
  std::vector<int64_t> list;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    parse_value(name, text.substr(begin, end - begin), list.emplace_back());
    begin = end + 1;
  }
  return list;
}

// Of the type that the key has.
MetadataValue parse_like(const MetadataValue& old, std::string_view key, const std::string& text) {
  const std::string name = fmt::format("--set {}", key);
  if (std::holds_alternative<bool>(old)) return parse_bool(key, text);
  if (std::holds_alternative<std::vector<int64_t>>(old)) return parse_list(name, text);
  if (std::holds_alternative<int64_t>(old)) {
    int64_t value = 0;
    parse_value(name, text, value);
    return value;
  }
  if (std::holds_alternative<double>(old)) {
    double value = 0;
    parse_value(name, text, value);
    return value;
  }
  return text;
}

void set(Metadata& metadata, const std::string& setting) {
  const size_t equals = setting.find('=');
  if (equals == std::string::npos)
    fail(Kind::usage, "--set {} (expected KEY=VALUE)", printable(setting));
  const std::string key = setting.substr(0, equals);
  const MetadataValue* old = metadata.find(key);
  if (!old || key == "general.architecture") {
    std::vector<std::string> known;
    for (const auto& [name, value] : metadata.entries()) known.push_back(name);
    fail(Kind::usage, Hint{did_you_mean(key, known)}, "--set: there is no key {}", printable(key));
  }
  metadata.set(key, parse_like(*old, key, setting.substr(equals + 1)));
}

Config configured(const std::string& name, const std::vector<std::string>& settings,
                  uint64_t seed) {
  Metadata metadata = metadata_from_config(preset(name));
  metadata.set("general.name", name);
  metadata.set("general.description", fmt::format("{}, random values of seed {}", name, seed));
  for (const std::string& setting : settings) set(metadata, setting);
  try {
    return config_from_metadata(metadata, "--set");
  } catch (const Error& e) {  // what is wrong stands on the command line, not in a file
    raise(Kind::usage, e.message, e.hint);
  }
}

void print(const std::string& path, const TensorMap& tensors, bool json) {
  const int64_t parameters = parameter_count(tensors);
  const std::string id = model_id(tensors);
  if (json) {
    const nlohmann::json report = {{"path", path}, {"parameters", parameters}, {"id", id}};
    fmt::print("{}\n", report.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  } else {
    fmt::print("{}: {} tensors, {} parameters, id {}\n", printable(path), tensors.tensors.size(),
               size_label(parameters), id);
  }
}

}  // namespace

int main(int argc, char** argv) {
  return run_tool(argc, argv, "sft-init", [](Cli& cli) {
    std::string name, output;
    std::vector<std::string> settings;
    bool force = false;
    cli.about(fmt::format("A model with random values, as training begins with. Presets:\n  {}",
                          fmt::join(preset_names(), ", ")));
    cli.argument("PRESET", name, "what kind of model");
    cli.option("--set", settings, "KEY=VALUE: another value for a key that sft-info shows");
    cli.option("-o,--output", output, "the file to write (.gguf, .safetensors), or a folder");
    cli.flag("--force", force, "replace what is there");
    cli.parse();
    if (output.empty()) fail(Kind::usage, "missing -o (expected the file to write)");
    const Existing existing = force ? Existing::replace : Existing::refuse;
    const std::string format = format_of_name(output);
    check_model_destination(output, format, existing);

    const Config config = configured(name, settings, cli.seed());
    TensorMap tensors;
    initialise_missing(tensors, backbone_tensors(config), cli.seed());
    for (const std::string& remark : save_model(output, format, config, tensors, existing))
      cli.say("{}", remark);
    print(output, tensors, cli.json());
  });
}
