// Content hashes as lower-case hex: XXH3-128, which guards against damage (0.03 s for 1.1 GB), and
// SHA-256, by which model files are known to other people.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

struct XXH3_state_s;

namespace sft {

// Of a stream of bytes; digest() may be asked at any time.
class Xxh3 {
 public:
  Xxh3();
  void update(std::span<const std::byte> bytes);
  void update(std::string_view text) { update(std::as_bytes(std::span(text.data(), text.size()))); }
  std::string digest() const;  // 32 digits

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

std::string xxh3_of_file(const std::string& path);

// FIPS 180-4; with the processor's instructions for it, where it has them.
class Sha256 {
 public:
  void update(std::span<const std::byte> bytes);
  std::string digest() const;  // 64 digits, of what came so far

 private:
  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<std::byte, 64> rest_{};  // of an unfinished block
  uint64_t bytes_ = 0;
};

std::string sha256_of_file(const std::string& path);

}  // namespace sft
