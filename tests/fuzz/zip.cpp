// The reader of zip archives on hostile bytes (libFuzzer): entries inside the file, one after the
// other, under names that are safe to print.
#include "engine/formats/zip.h"

#include <algorithm>

#include "engine/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    std::vector<sft::ZipEntry> entries =
        sft::parse_zip("fuzzed", std::as_bytes(std::span(data, size)));
    std::sort(entries.begin(), entries.end(), [](const sft::ZipEntry& a, const sft::ZipEntry& b) {
      return a.offset != b.offset ? a.offset < b.offset : a.bytes < b.bytes;
    });
    uint64_t end = 0;
    for (const sft::ZipEntry& entry : entries) {
      if (entry.offset < end || entry.offset > size || entry.bytes > size - entry.offset)
        __builtin_trap();
      if (sft::printable(entry.name, SIZE_MAX) != entry.name) __builtin_trap();
      end = entry.offset + entry.bytes;
    }
  } catch (const sft::Error& e) {
    if (e.kind != sft::Kind::input || sft::printable(e.message, SIZE_MAX) != e.message)
      __builtin_trap();
  }
  return 0;
}
