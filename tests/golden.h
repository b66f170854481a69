// Where the golden files lie.
#pragma once

#include <string>

#include "build_info.h"

namespace sft::test {

inline std::string golden(const std::string& name) {
  return std::string(SFT_TESTS_DIR) + "/golden/" + name;
}

}  // namespace sft::test
