// Model files of every container: GGUF, a Hugging Face folder, safetensors, or a run. Reading is
// strict: every tensor the configuration asks for, with its shape, and none that nobody knows.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "engine/formats/tensor_file.h"
#include "engine/params.h"
#include "models/config.h"

namespace sft {

struct ModelFile {
  std::string path;    // as it was given
  std::string format;  // gguf, hf, safetensors
  Config config;
  TensorMap tensors;                 // names of docs/contract.md section 3; views into the file
  std::vector<std::string> remarks;  // what was dropped, or is not as one might expect
};

// A run stands for its best checkpoint; an unfinished run gives a remark.
ModelFile open_model(const std::string& path);

// Names and shapes that a configuration asks for: the backbone, in the order in which we write.
std::vector<TensorSpec> backbone_tensors(const Config& config);
bool is_backbone(std::string_view name);  // neither pretrain.* nor task.*

// XXH3-128 over (name, shape, f32 bytes) of all backbone tensors in name order: the same for every
// container of the same weights.
std::string model_id(const TensorMap& tensors);

// "gguf", "hf" or "safetensors", by the name of the output: a folder or a name without a known
// ending is a Hugging Face folder.
std::string format_of_name(std::string_view path);

// Writes all tensors (backbone, pretrain.*, task.* where the container can hold them) as f32.
// What it cannot hold is returned, one line each.
std::vector<std::string> save_model(const std::string& path, std::string_view format,
                                    const Config& config, const TensorMap& tensors,
                                    Existing existing = Existing::refuse);

// Throws Kind::input naming the first tensor with a value that is not finite.
void check_finite(const ModelFile& model);

}  // namespace sft
