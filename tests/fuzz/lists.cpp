// The readers of lists on hostile bytes: manifests, trn, STM, and the text in them. They return, or
// throw an Error of kind input; what a manifest reads back from its own text is the same
// (libFuzzer).
#include <cstdint>
#include <string_view>

#include "engine/check.h"
#include "train/manifest.h"
#include "train/metrics.h"
#include "train/stm.h"
#include "train/text.h"

namespace {

template <class F>
void expect_input_error(F&& read) {
  try {
    read();
  } catch (const sft::Error& e) {
    if (e.kind != sft::Kind::input) __builtin_trap();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  expect_input_error([&] {
    const std::string once = sft::manifest_text(sft::parse_manifest(text, "fuzzed"));
    if (sft::manifest_text(sft::parse_manifest(once, "fuzzed")) != once) __builtin_trap();
  });
  expect_input_error([&] { sft::parse_trn(text, "fuzzed"); });
  expect_input_error([&] { sft::parse_stm(text, "fuzzed"); });
  expect_input_error([&] {
    const sft::Units units = sft::Units::chars();
    const std::string normal = sft::normalise_upper(text);
    if (units.decode(units.encode(normal, "fuzzed")) != normal) __builtin_trap();
  });
  return 0;
}
