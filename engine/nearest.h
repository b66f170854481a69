// "did you mean": the candidate nearest to a mistyped name.
#pragma once

#include <span>
#include <string>
#include <string_view>

namespace sft {

// Smallest edit distance (a swap of neighbours counts 1), if it is at most a third of the longer
// name, rounded up; ties keep the earlier. Empty: nothing is near.
std::string nearest_name(std::string_view name, std::span<const std::string> candidates);

// "did you mean X?", or empty: for a Hint.
std::string did_you_mean(std::string_view name, std::span<const std::string> candidates);

}  // namespace sft
