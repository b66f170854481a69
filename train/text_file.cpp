#include "train/text_file.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "engine/check.h"

namespace sft {

std::string read_text_file(const std::string& path) {
  constexpr uintmax_t kLargest = 1ull << 30;  // bytes; a manifest of a million rows has 200 MiB
  std::error_code error;
  const uintmax_t size = std::filesystem::file_size(path, error);
  if (error) fail(Kind::input, "{}: {}", printable(path), error.message());
  if (size > kLargest)
    fail(Kind::input, "{}: {} bytes (expected at most 1 GiB)", printable(path), size);
  std::ifstream in(path, std::ios::binary);
  std::string text(size, '\0');
  if (!in.read(text.data(), static_cast<std::streamsize>(size)))
    fail(Kind::input, "{}: {}", printable(path), std::strerror(errno));
  return text;
}

}  // namespace sft
