// TensorFile: named tensors and metadata of a file, whatever its container. Nothing in a file is
// trusted: names, sizes and offsets were checked against the bytes that are there before any of
// these exist. Errors: Kind::input, naming file and tensor.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/formats/metadata.h"
#include "engine/io/file.h"
#include "engine/tensor.h"

namespace sft {

struct TensorInfo {
  std::string name;
  Shape shape;  // PyTorch's order, row-major
  Dtype dtype = Dtype::f32;
  uint64_t offset = 0;  // from the start of its file
  uint64_t bytes = 0;   // of the dense tensor
  int shard = 0;        // which file, where a model is cut into several
  // Elements from one to the next of each dimension, where the file does not hold the tensor dense
  // (PyTorch's views of a storage); else empty.
  std::vector<int64_t> strides;
};

// What the head of a file says.
struct TensorTable {
  Metadata metadata;
  std::vector<TensorInfo> tensors;  // in file order
};

class TensorFile {
 public:
  TensorFile(std::string path, TensorTable table, std::vector<InputFile> files);

  const std::string& path() const { return path_; }  // the file, or the index of its shards
  const Metadata& metadata() const { return table_.metadata; }
  const std::vector<TensorInfo>& tensors() const { return table_.tensors; }
  const TensorInfo* find(std::string_view name) const;  // null: absent
  const TensorInfo& at(std::string_view name) const;

  // Into the mapped file, read-only; valid as long as this object. Where viewable() is false (data
  // not aligned to its type, which some safetensors writers produce, or not dense) use read.
  bool viewable(const TensorInfo& tensor) const;
  Tensor view(const TensorInfo& tensor) const;
  // By pread, without mapping: `to` has tensor.bytes; or a part of it, from byte `first`. A tensor
  // that is not dense becomes so, in whole elements.
  void read(const TensorInfo& tensor, std::span<std::byte> to, uint64_t first = 0) const;
  // The same as f32, whatever real type it is stored in; `to` has shape.count().
  void read_f32(const TensorInfo& tensor, std::span<float> to) const;

 private:
  std::string path_;
  TensorTable table_;
  std::vector<InputFile> files_;
  std::unordered_map<std::string_view, size_t> index_;  // views of the names in table_
};

// Decides by content, never by the file's name: GGUF, safetensors, a file of torch.save with
// nothing but tensors under names, or the JSON index of a model in shards. Anything else:
// Kind::input saying what it looks like.
TensorFile open_tensor_file(const std::string& path);

// A tensor as a writer is told of it, before its data.
struct TensorSpec {
  std::string name;
  Shape shape;
  Dtype dtype = Dtype::f32;
};

// Writes the data of a file whose head is already written, tensor by tensor, so a file may be
// larger than memory. Made by create_gguf, create_safetensors and create_torch.
class TensorWriter {
 public:
  // In the order in which the data must come.
  const std::vector<TensorSpec>& tensors() const { return tensors_; }

  // The next tensor, whole and dense; shape must match, real types are converted to the declared.
  void write(std::string_view name, const Tensor& tensor);
  // The next bytes of the next tensor as stored, in pieces of any size that end where it ends.
  void append(std::span<const std::byte> piece);
  // Bytes of tensors()[tensor] from byte `first`: in any order, from several threads at once, each
  // byte once. In place of write and append.
  void place(size_t tensor, uint64_t first, std::span<const std::byte> piece);
  // Another head in the place of the one written, as long as that; not of a file with a `seal`.
  void replace_head(std::string_view head);
  // Every tensor must be there: syncs and renames.
  void finish();

  // For the containers: `file` stands where the data begin; each tensor is padded to `alignment`.
  TensorWriter(OutputFile file, std::vector<TensorSpec> tensors, uint64_t alignment);
  // The tensors lie at `offsets`; what is between and behind them is written by `seal` at the end,
  // which is told the CRC-32 of each.
  using Seal = std::function<void(OutputFile&, std::span<const uint32_t> crcs)>;
  TensorWriter(OutputFile file, std::vector<TensorSpec> tensors, std::vector<uint64_t> offsets,
               Seal seal);

 private:
  struct Piece {
    size_t tensor = 0;
    uint64_t first = 0, bytes = 0;
    uint32_t crc = 0;
    auto operator<=>(const Piece&) const = default;
  };
  void put(size_t tensor, uint64_t first, std::span<const std::byte> piece);
  std::vector<uint32_t> sums();

  OutputFile file_;
  std::vector<TensorSpec> tensors_;
  std::vector<uint64_t> offsets_;  // of each tensor in the file
  uint64_t head_ = 0;              // bytes before the data
  uint64_t end_ = 0;               // of the data and its padding
  Seal seal_;
  size_t next_ = 0;
  uint64_t written_ = 0;                                                // of the next tensor
  uint64_t done_ = 0;                                                   // bytes of all tensors
  std::unique_ptr<std::mutex> mutex_ = std::make_unique<std::mutex>();  // guards pieces_
  std::vector<Piece> pieces_;  // written so far, where seal_ asks for their sums
};

// For the containers. Throws Kind::input for a name that is empty, not UTF-8, has control
// characters or looks like a path out of a folder.
void check_name(const std::string& path, std::string_view what, std::string_view name);
// Throws Kind::internal for names or shapes that a reader would reject, or that come twice.
void check_specs(const std::string& path, const std::vector<TensorSpec>& tensors);

}  // namespace sft
