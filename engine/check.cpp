#include "engine/check.h"

#include <cstdint>

#include "engine/utf8.h"

namespace sft {

Error::Error(Kind kind, std::string message, std::string hint)
    : kind(kind), message(std::move(message)), hint(std::move(hint)) {}

void raise(Kind kind, std::string message, std::string hint) {
  throw Error(kind, std::move(message), std::move(hint));
}

void check_failed(const char* condition, const char* file, int line, std::string message) {
  raise(Kind::internal, fmt::format("{} [{} at {}:{}]", message, condition, file, line),
        "this is a bug in sft; please report it with the command line");
}

std::string printable(std::string_view text, size_t limit) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    if (out.size() >= limit) return out + "...";
    const size_t length = utf8_length(text.substr(i));
    const auto byte = static_cast<uint8_t>(text[i]);
    const bool control = byte < 0x20 || byte == 0x7F ||
                         (byte == 0xC2 && length == 2 && static_cast<uint8_t>(text[i + 1]) < 0xA0);
    if (length == 0 || control) {
      out += fmt::format("\\x{:02x}", byte);
      if (length == 2) out += fmt::format("\\x{:02x}", static_cast<uint8_t>(text[i + 1]));
      i += length == 2 ? 2 : 1;
    } else {
      out += text.substr(i, length);
      i += length;
    }
  }
  return out;
}

}  // namespace sft
