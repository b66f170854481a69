// Zip archives as torch.save writes them: entries stored, not compressed; sizes above 4 GiB by
// zip64. Stricter than the format: nothing before the first entry, between two, or after the end
// record, so a file is this archive and nothing else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/io/file.h"

namespace sft {

struct ZipEntry {
  std::string name;
  uint64_t offset = 0;  // of its content, from the start of the file
  uint64_t bytes = 0;
  uint32_t crc = 0;  // of its content; 0: not told
};

// `file` is the whole file, of which only the directory and the heads of entries are read.
// Kind::input for anything that is not as above, encrypted, compressed, doubled, overlapping, told
// differently in two places, or named like a path out of a folder.
std::vector<ZipEntry> parse_zip(const std::string& path, std::span<const std::byte> file);

// As zip has it (ISO 3309); of the bytes that gave `before` and then these.
uint32_t crc32(std::span<const std::byte> bytes, uint32_t before = 0);
// Of bytes with the sum `before`, and after them `bytes` bytes with the sum `crc`.
uint32_t combined_crc32(uint32_t before, uint32_t crc, uint64_t bytes);

struct ZipSize {
  std::string name;
  uint64_t bytes = 0;
  uint32_t crc = 0;
};

// The bytes of an archive around its contents: those before each entry's content, which begins at
// a multiple of 64, and after the last. zip64 where a size asks for it. No times, so the same
// entries give the same bytes.
class ZipLayout {
 public:
  void add(ZipSize entry);
  // Where the content of entry i lies; the end of the last.
  uint64_t offset(size_t i) const { return places_[i].content; }
  uint64_t end() const { return end_; }

  std::string head(size_t i) const;  // stands right before the content of entry i
  std::string directory() const;     // stands at end()

  void set_crc(size_t i, uint32_t crc) { places_[i].entry.crc = crc; }

 private:
  struct Place {
    ZipSize entry;
    uint64_t head = 0, content = 0;
  };
  std::vector<Place> places_;
  uint64_t end_ = 0;
};

}  // namespace sft
