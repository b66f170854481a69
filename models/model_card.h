// README.md of a Hugging Face folder: what the model is, how it is loaded, where it comes from.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/formats/tensor_file.h"
#include "models/config.h"

namespace sft {

// `class_name` of transformers; `tensors` under our names. The same model gives the same text.
std::string model_card(const Config& config, std::string_view class_name,
                       const std::vector<TensorSpec>& tensors);

}  // namespace sft
