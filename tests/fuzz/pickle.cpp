// The pickle machine on hostile bytes (libFuzzer): pickles end to end, as in PyTorch's old files.
// Whatever is built can be walked.
#include "engine/formats/pickle.h"

#include "engine/check.h"

namespace {

// Steps through the value and what is in it, at most `left` of them: it may contain itself.
void walk(sft::PickleValue value, int depth, int& left) {
  if (--left < 0 || depth > 20) return;
  value.text(), value.integer(), value.real(), value.find("model");
  for (size_t i = 0; i < value.size() && left > 0; ++i) walk(value[i], depth + 1, left);
  if (value.is(sft::PickleType::persistent)) walk(value.id(), depth + 1, left);
  if (!value.is(sft::PickleType::object)) return;
  walk(value.maker(), depth + 1, left);
  walk(value.arguments(), depth + 1, left);
  walk(value.state(), depth + 1, left);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  sft::ByteReader in("fuzzed", std::as_bytes(std::span(data, size)));
  try {
    while (in.remaining() > 0) {
      const sft::Pickle pickle(in);
      int left = 1000;
      walk(pickle.root(), 0, left);
      for (const sft::PickleValue id : pickle.persistent_ids()) id.offset();
    }
  } catch (const sft::Error& e) {
    if (e.kind != sft::Kind::input || sft::printable(e.message, SIZE_MAX) != e.message)
      __builtin_trap();
  }
  return 0;
}
