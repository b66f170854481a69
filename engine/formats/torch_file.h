// Files of torch.save: zip (PyTorch 1.6 and later) and the older layout, five pickles and then the
// storages. Nothing in them is executed (pickle.h), and of the storages only what is asked for is
// read. Little endian only.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "engine/formats/pickle.h"
#include "engine/formats/tensor_file.h"

namespace sft {

bool starts_as_torch(std::string_view start);  // the first bytes of a file

class TorchFile {
 public:
  explicit TorchFile(const std::string& path);
  // `bytes` is the whole file; it must outlive this object.
  TorchFile(const std::string& path, std::span<const std::byte> bytes);

  const std::string& path() const { return path_; }
  PickleValue root() const { return pickle_->root(); }  // what was saved

  // Whether a value was a tensor or a Parameter.
  static bool is_tensor(PickleValue value);
  // Where it lies, under the name it is given here. Kind::input if it is not all inside its
  // storage, of a type unknown here, or has more than four dimensions.
  TensorInfo tensor(PickleValue value, std::string name) const;
  // Those tensors as a file. Their storages must have the sums that a zip archive says.
  TensorFile file(std::vector<TensorInfo> tensors) const;
  TensorTable table(std::vector<TensorInfo> tensors) const;  // the same without the file

 private:
  struct Storage {
    uint64_t offset = 0, bytes = 0;
    uint32_t crc = 0;  // 0: not told
  };
  struct View;
  void read();
  void read_zip();
  void read_legacy();
  void place_legacy(ByteReader& in, PickleValue keys);
  View view_of(PickleValue persistent, const std::string& name) const;
  void check_sums(const std::vector<TensorInfo>& tensors) const;

  std::string path_;
  std::unique_ptr<InputFile> mapped_;
  std::span<const std::byte> bytes_;
  std::unique_ptr<Pickle> pickle_;
  std::unordered_map<std::string, Storage> storages_;  // by key
};

// A file whose root is a dict with tensors under text keys: a bare state dict. Other values in it
// are left out.
TensorFile open_torch_tensors(const std::string& path);
TensorTable read_torch_table(const std::string& path);

// What is written to the pickle: a tree of plain values.
class TorchTree {
 public:
  static TorchTree none();
  static TorchTree boolean(bool value);
  static TorchTree integer(int64_t value);
  static TorchTree real(double value);
  static TorchTree text(std::string value);
  static TorchTree list(std::vector<TorchTree> items);
  static TorchTree dict(std::vector<std::pair<std::string, TorchTree>> items);
  // collections.OrderedDict of the tensors of a writer, in their order, and behind them `others`.
  static TorchTree tensors(std::vector<std::pair<std::string, TorchTree>> others = {});

 private:
  friend class PickleWriter;
  enum class Kind { none, boolean, integer, real, text, list, dict, tensors };
  Kind kind_ = Kind::none;
  int64_t integer_ = 0;
  double real_ = 0;
  std::string text_;
  std::vector<TorchTree> items_;
  std::vector<std::string> keys_;
};

// Writes `root` as the zip layout of torch.save, protocol 2, one dense storage a tensor; it has
// one TorchTree::tensors(). torch.load(weights_only=True) reads it. The same arguments and data
// give the same bytes. No q8_0.
TensorWriter create_torch(const std::string& path, const TorchTree& root,
                          std::vector<TensorSpec> tensors, Existing existing = Existing::refuse);

}  // namespace sft
