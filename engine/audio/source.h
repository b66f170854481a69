// The bytes an audio file is decoded from: a regular file, or memory (tests, fuzzing, archives).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

namespace sft {

class ByteSource {
 public:
  ByteSource(std::string name, int64_t size) : name(std::move(name)), size(size) {}
  virtual ~ByteSource() = default;
  // Copies bytes [offset, offset + count) to `to`; returns how many there were. Never throws: a
  // failed read is a short one (C libraries call this).
  virtual size_t read(int64_t offset, void* to, size_t count) const noexcept = 0;

  const std::string name;  // printable, for messages
  const int64_t size;      // bytes, when it was opened
};

// Errors (input): missing, unreadable, empty, a directory, a pipe or device.
std::unique_ptr<ByteSource> open_bytes(const std::string& path);

// A view: `bytes` must outlive the source.
std::unique_ptr<ByteSource> view_bytes(std::span<const std::byte> bytes, const std::string& name);

}  // namespace sft
