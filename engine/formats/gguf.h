// GGUF version 3, the container of our models (ggml docs/gguf.md, src/gguf.cpp).
//
//   "GGUF" u32 version, u64 tensors, u64 pairs
//   pairs:   string key, u32 type, value          (string: u64 length and bytes)
//   tensors: string name, u32 n_dims, u64 dims[n_dims], u32 type, u64 offset
//   zeros to the alignment (32), then the data, each tensor padded with zeros to the alignment
//
// dims[0] is the fastest: PyTorch's order reversed. Real numbers are stored as f32 where their
// shortest decimal form survives that (1e-5 does), else as f64: reading gives back the same double.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "engine/formats/tensor_file.h"

namespace sft {

// The data must fill the file exactly: no holes, no other order, nothing after. Version 2 is read
// too. Limits: keys 65535 bytes, strings 16 MiB, arrays 16 Mi elements, 1e6 tensors, names 63
// bytes, alignment 1 MiB, head 256 MiB.
TensorFile open_gguf(const std::string& path);

// The head of a file of `file_size` bytes, of which `start` is the beginning; throws NeedMoreBytes
// (byte_reader.h) where that is not enough of it.
TensorTable parse_gguf(const std::string& path, std::span<const std::byte> start,
                       uint64_t file_size);

// The head of such a file, up to its data. Tensors: f32, f16, bf16, q8_0 (rows of a multiple of
// 32), f64, i8, i16, i32, i64; a scalar becomes [1]. The same arguments give the same bytes.
std::string gguf_head(const std::string& path, const Metadata& metadata,
                      const std::vector<TensorSpec>& tensors);

// Writes the head.
TensorWriter create_gguf(const std::string& path, const Metadata& metadata,
                         std::vector<TensorSpec> tensors, Existing existing = Existing::refuse);

}  // namespace sft
