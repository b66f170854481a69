// SHA-256 of the files that a model was read from.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace sft {

// Path and sum. `files` are those of a ModelFile; of an index of shards the shards too, and of a
// Hugging Face folder the JSON files that say what its tensors mean.
std::vector<std::pair<std::string, std::string>> file_sums(const std::vector<std::string>& files);

}  // namespace sft
