// safetensors: u64 length n, n bytes of JSON, then the data (github.com/huggingface/safetensors).
//
//   {"__metadata__": {"format": "pt"}, "name": {"dtype": "F32", "shape": [2, 3],
//    "data_offsets": [0, 24]}, ...}      offsets count from the first byte after the JSON
#pragma once

#include <span>
#include <string>
#include <vector>

#include "engine/formats/tensor_file.h"

namespace sft {

// Strict: no name twice, no holes, no overlaps, nothing after the data, at most 4 dimensions, a
// head of at most 32 MB. A file that is a zip archive as well is refused. Metadata are strings.
TensorFile open_safetensors(const std::string& path);

// model.safetensors.index.json: {"weight_map": {tensor: file name}}, files beside it. The map and
// the files must agree on every tensor. The same for pytorch_model.bin.index.json.
TensorFile open_sharded(const std::string& index_path);

// The head of a file of `file_size` bytes, of which `start` is the beginning; throws NeedMoreBytes
// (byte_reader.h) where that is not enough of it.
TensorTable parse_safetensors(const std::string& path, std::span<const std::byte> start,
                              uint64_t file_size);

// The head of such a file, up to its data: `strings` (values must be strings) after
// {"format": "pt"}, which transformers asks for; tensors in the order of their data. Data start at
// a multiple of 8. No q8_0. The same arguments give the same bytes.
std::string safetensors_head(const std::string& path, const Metadata& strings,
                             const std::vector<TensorSpec>& tensors);

// Writes the head, with the tensors sorted by size of their elements, largest first, then by name.
TensorWriter create_safetensors(const std::string& path, const Metadata& strings,
                                std::vector<TensorSpec> tensors,
                                Existing existing = Existing::refuse);

}  // namespace sft
