// Patterns over names of parameters: "enc.*.attn.*".
#pragma once

#include <string_view>

namespace sft {

// Shell-style: * stands for any characters, dots too, ? for one.
bool glob_match(std::string_view pattern, std::string_view name);

}  // namespace sft
