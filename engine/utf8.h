// UTF-8 (RFC 3629): no overlong forms, no surrogates, nothing beyond U+10FFFF.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace sft {

// Bytes of the well-formed sequence at the start of `text` (not empty); 0 if there is none.
size_t utf8_length(std::string_view text);

bool is_utf8(std::string_view text);

// One string per code point; a byte that belongs to none stands alone.
std::vector<std::string> utf8_characters(std::string_view text);

}  // namespace sft
