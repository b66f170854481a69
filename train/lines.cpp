#include "train/lines.h"

#include <algorithm>

#include "engine/check.h"
#include "engine/utf8.h"

namespace sft {

void for_each_line(std::string_view text, const std::string& name,
                   const std::function<void(std::string_view line, const std::string& where,
                                            size_t number)>& take) {
  for (size_t number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
    if (line.find_first_not_of(" \t") == std::string_view::npos || line.starts_with(";;")) continue;
    const std::string where = fmt::format("{}:{}:", printable(name), number);
    if (!is_utf8(line) || line.find('\0') != std::string_view::npos)
      fail(Kind::input, "{} is not text: {}", where, printable(line, 60));
    take(line, where, number);
  }
}

}  // namespace sft
