// Hugging Face folders of transformers: config.json, preprocessor_config.json, and weights in
// model.safetensors, whole or in shards.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "models/checkpoint.h"

namespace sft {

bool is_huggingface_folder(const std::string& path);
ModelFile open_huggingface(const std::string& path);
std::vector<std::string> save_huggingface(const std::string& path, const Config& config,
                                          const TensorMap& tensors, Existing existing);

// Our name of a tensor of a bare transformers model, and the other way round; empty: not known.
// Old spellings of weight norm are read (weight_g) and written; new ones (parametrizations) read.
std::string name_from_huggingface(std::string_view name);
std::string name_to_huggingface(std::string_view name);

}  // namespace sft
