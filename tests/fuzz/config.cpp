// Configurations as JSON on hostile text (libFuzzer): config.json of transformers, alone and as its
// own preprocessor_config.json, and the values that our safetensors keep as JSON. What is accepted
// is sound, and the same after it was written as metadata and read again.
#include "engine/check.h"
#include "models/huggingface_config.h"

namespace {

void try_config(std::string_view text, bool preprocessor) {
  const sft::JsonFields fields("fuzzed", text);
  const sft::Config config =
      sft::config_from_huggingface(fields, preprocessor ? &fields : nullptr, {});
  sft::check_config(config, "fuzzed");
  const sft::Metadata metadata = sft::metadata_from_config(config);
  if (!(sft::metadata_from_config(sft::config_from_metadata(metadata, "fuzzed")) == metadata))
    __builtin_trap();
}

void try_value(std::string_view text, bool) {
  const sft::MetadataValue value = sft::value_from_json(text, "fuzzed", "key");
  sft::value_to_json(value);
  sft::Metadata strings;
  strings.set("hubert.block_count", std::string(text));
  sft::config_from_metadata(sft::metadata_from_strings(strings, "fuzzed"), "fuzzed");
}

void run(void (*part)(std::string_view, bool), std::string_view text, bool flag) {
  try {
    part(text, flag);
  } catch (const sft::Error& e) {
    if (e.kind != sft::Kind::input || sft::printable(e.message, SIZE_MAX) != e.message)
      __builtin_trap();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  run(try_config, text, size % 2 == 0);
  run(try_value, text, false);
  return 0;
}
