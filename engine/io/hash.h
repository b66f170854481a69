// Content hashes as lower-case hex: XXH3-128, which guards against damage (0.03 s for 1.1 GB).
#pragma once

#include <cstddef>
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

}  // namespace sft
