// A file without a name, for what memory does not hold: gone with this object, or with its process
// however that ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "engine/io/system.h"

namespace sft {

class SpillFile {
 public:
  // In a folder that exists. Kind::resource if nothing can be written there.
  explicit SpillFile(const std::string& folder);

  // False, with errno, if the file system refuses (it is full): then nothing of these bytes counts.
  bool write_at(uint64_t offset, std::span<const std::byte> bytes);
  // Bytes that were written. Kind::resource if the device fails.
  void read_at(uint64_t offset, std::span<std::byte> to) const;
  // A hint: these will be read soon.
  void will_need(uint64_t offset, uint64_t bytes) const;

 private:
  io::Descriptor file_;
};

// Bytes that the file system of `path` has for us; of a path that is not there, of the nearest
// folder above it that is. 0 if it does not say.
int64_t free_disk(const std::string& path);

}  // namespace sft
