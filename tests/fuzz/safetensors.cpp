// The safetensors reader on hostile bytes (libFuzzer).
#include "engine/formats/safetensors.h"

#include "tests/fuzz/table.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  sft::fuzz::try_parse(std::as_bytes(std::span(data, size)), [&](std::span<const std::byte> start) {
    return sft::parse_safetensors("fuzzed", start, size);
  });
  return 0;
}
