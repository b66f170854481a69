// Lines of NIST's text formats (trn, STM).
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

namespace sft {

// Calls take(line, where, number) for every line, `where` being "NAME:LINE:" and numbers from 1.
// Lines end in LF or CR LF; empty ones and comments (";;") are passed over. Kind::input for a line
// that is not UTF-8 or holds a zero byte.
void for_each_line(std::string_view text, const std::string& name,
                   const std::function<void(std::string_view line, const std::string& where,
                                            size_t number)>& take);

}  // namespace sft
