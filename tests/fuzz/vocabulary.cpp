// Vocabularies of CTC heads on hostile text (libFuzzer): four lines as vocab.json,
// tokenizer_config.json, special_tokens_map.json and added_tokens.json, and the whole as
// dict.ltr.txt. What is accepted is sound, and the same after it was written and read again.
#include "models/vocabulary.h"

#include "engine/check.h"

namespace {

void try_folder(std::string_view text) {
  constexpr int64_t kOutputs = 30;  // of the seed
  sft::VocabularyTexts texts;
  for (const char* name :
       {"vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"}) {
    const size_t end = std::min(text.find('\n'), text.size());
    if (end > 0) texts[name] = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  const sft::Config::Task task = sft::parse_vocabulary(texts, "fuzzed", kOutputs).task;
  if (task.units.size() != kOutputs || task.blank < 0 || task.blank >= kOutputs) __builtin_trap();
  const sft::Config::Task again =
      sft::parse_vocabulary(sft::vocabulary_texts(task), "again", kOutputs).task;
  if (again.units != task.units || again.blank != task.blank) __builtin_trap();
}

void try_dictionary(std::string_view text) {
  const std::vector<std::string> units = sft::parse_fairseq_dictionary(text, "fuzzed");
  const std::string written = sft::fairseq_dictionary({.units = units});
  if (units.size() > 4 && sft::parse_fairseq_dictionary(written, "again") != units)
    __builtin_trap();
}

void run_vocabulary(void (*part)(std::string_view), std::string_view text) {
  try {
    part(text);
  } catch (const sft::Error& e) {
    if (e.kind != sft::Kind::input || e.message.starts_with("again") ||
        sft::printable(e.message, SIZE_MAX) != e.message)
      __builtin_trap();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  run_vocabulary(try_folder, text);
  run_vocabulary(try_dictionary, text);
  return 0;
}
