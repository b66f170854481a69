// Which cases said that they could not run here (test::skip).
#pragma once

#include <set>
#include <string>

namespace sft::test {

std::set<std::string>& skipped_cases();

}  // namespace sft::test
