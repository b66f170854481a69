// Whole text files: manifests, trn, STM, lists of units.
#pragma once

#include <string>

namespace sft {

// At most 1 GiB; Kind::input, beginning with the path, if it cannot be read.
std::string read_text_file(const std::string& path);

}  // namespace sft
