// Hugging Face folders of transformers: config.json, preprocessor_config.json, and weights in
// model.safetensors or pytorch_model.bin, whole or in shards; with a CTC head also its vocabulary
// (models/vocabulary.h). Folders are written with safetensors and a model card.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "models/checkpoint.h"

namespace sft {

bool is_huggingface_folder(const std::string& path);
// Without `with_heads` no vocabulary is looked at, and a CTC head is dropped.
StoredModel open_huggingface(const std::string& path, bool with_heads = true);

// A folder as it is being written: all but the weights is there, these go through the writer, then
// the folder is committed. A task head other than a linear CTC head is Kind::usage.
struct HuggingFaceFolder {
  std::unique_ptr<OutputDirectory> folder;
  TensorWriter writer;
  std::vector<TensorSpec> tensors;   // the writer's, under our names
  std::vector<std::string> dropped;  // what such a folder has no place for, one line each
};
HuggingFaceFolder create_huggingface(const std::string& path, const Config& config,
                                     const std::vector<TensorSpec>& tensors, Existing existing);

// Our name of a tensor of a bare transformers model, and the other way round; empty: not known.
// Old spellings of weight norm are read (weight_g) and written; new ones (parametrizations) read.
std::string name_from_huggingface(std::string_view name);
std::string name_to_huggingface(std::string_view name, const Config& config);

}  // namespace sft
