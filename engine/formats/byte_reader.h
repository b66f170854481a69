// ByteReader: the only way to read untrusted bytes. Every access is checked against the bytes that
// are there; errors are Kind::input and name file, field and offset.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>

#include "engine/check.h"

namespace sft {

static_assert(std::endian::native == std::endian::little, "our files are little endian");

// false: it does not fit
[[nodiscard]] inline bool checked_add(uint64_t a, uint64_t b, uint64_t& sum) {
  return !__builtin_add_overflow(a, b, &sum);
}
[[nodiscard]] inline bool checked_mul(uint64_t a, uint64_t b, uint64_t& product) {
  return !__builtin_mul_overflow(a, b, &product);
}

// Thrown where the bytes at hand are only the start of the file and more of it is needed.
struct NeedMoreBytes {
  uint64_t bytes;  // from the start of the file
};

class ByteReader {
 public:
  // `bytes` is the start of a file of `file_size` bytes (all of it, if equal).
  ByteReader(std::string path, std::span<const std::byte> bytes, uint64_t file_size)
      : path_(std::move(path)), bytes_(bytes), file_size_(file_size) {}
  ByteReader(std::string path, std::span<const std::byte> bytes)
      : ByteReader(std::move(path), bytes, bytes.size()) {}

  uint64_t offset() const { return offset_; }
  uint64_t remaining() const { return file_size_ - offset_; }  // in the file
  const std::string& path() const { return path_; }

  // `what` names the field in messages.
  uint8_t u8(std::string_view what) { return number<uint8_t>(what); }
  uint16_t u16(std::string_view what) { return number<uint16_t>(what); }
  uint32_t u32(std::string_view what) { return number<uint32_t>(what); }
  uint64_t u64(std::string_view what) { return number<uint64_t>(what); }
  int8_t i8(std::string_view what) { return number<int8_t>(what); }
  int16_t i16(std::string_view what) { return number<int16_t>(what); }
  int32_t i32(std::string_view what) { return number<int32_t>(what); }
  int64_t i64(std::string_view what) { return number<int64_t>(what); }
  float f32(std::string_view what) { return number<float>(what); }
  double f64(std::string_view what) { return number<double>(what); }

  template <class T>
  T number(std::string_view what) {
    static_assert(std::is_arithmetic_v<T>);
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }

  // Valid as long as the bytes given to the constructor.
  std::string_view string(uint64_t length, uint64_t limit, std::string_view what) {
    if (length > limit) bad(what, "is {} bytes long (at most {})", length, limit);
    const auto bytes = take(length, what);
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
  }
  void skip(uint64_t bytes, std::string_view what) { take(bytes, what); }
  // What was read already, from `offset` on.
  const char* behind(uint64_t offset) const {
    return reinterpret_cast<const char*>(bytes_.data() + offset);
  }
  // To the next multiple of `alignment`; the bytes in between must be zero.
  void align(uint64_t alignment, std::string_view what) {
    for (std::byte b : take((alignment - offset_ % alignment) % alignment, what))
      if (b != std::byte{0}) bad(what, "has bytes that are not zero");
  }
  // `count` records of at least `record` bytes each must fit into what remains; so a loop or an
  // allocation over `count` is bounded by the size of the file.
  void expect_records(uint64_t count, uint64_t record, std::string_view what) {
    uint64_t bytes;
    if (!checked_mul(count, record, bytes) || bytes > remaining())
      bad(what, "is {}, more than the {} bytes that remain can hold", count, remaining());
  }

  template <class... Args>
  [[noreturn]] void bad(std::string_view what, fmt::format_string<Args...> format,
                        Args&&... args) const {
    fail(Kind::input, "{}: {} at offset {} {}", path_, what, offset_,
         fmt::format(format, std::forward<Args>(args)...));
  }

 private:
  std::span<const std::byte> take(uint64_t count, std::string_view what) {
    if (count > remaining())
      bad(what, "needs {} bytes, the file has {} left (is it cut off?)", count, remaining());
    if (offset_ + count > bytes_.size()) throw NeedMoreBytes{offset_ + count};
    const auto taken = bytes_.subspan(offset_, count);
    offset_ += count;
    return taken;
  }

  std::string path_;
  std::span<const std::byte> bytes_;
  uint64_t file_size_;
  uint64_t offset_ = 0;
};

}  // namespace sft
