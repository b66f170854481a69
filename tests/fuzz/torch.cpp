// Files of torch.save on hostile bytes (libFuzzer): tensors lie inside the file.
#include "engine/formats/torch_file.h"

#include <algorithm>

#include "engine/check.h"

namespace {

// Whether the last element that the tensor reaches is in the file.
bool inside(const sft::TensorInfo& tensor, uint64_t size) {
  if (tensor.shape.count() == 0) return true;
  const auto item = static_cast<uint64_t>(bytes_of(tensor.dtype, 1));
  uint64_t end = tensor.offset + tensor.bytes;
  if (!tensor.strides.empty()) {
    end = tensor.offset + item;
    for (int d = 0; d < tensor.shape.rank(); ++d)
      end += static_cast<uint64_t>(tensor.shape[d] - 1) *
             static_cast<uint64_t>(tensor.strides[static_cast<size_t>(d)]) * item;
  }
  return tensor.offset <= size && end <= size;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  try {
    const sft::TorchFile file("fuzzed", std::as_bytes(std::span(data, size)));
    std::vector<sft::TensorInfo> tensors;
    const auto model = file.root().find("model");
    const sft::PickleValue state = model ? *model : file.root();
    for (size_t i = 0; i + 1 < state.size(); i += 2)
      if (sft::TorchFile::is_tensor(state[i + 1]))
        tensors.push_back(file.tensor(state[i + 1], std::string(state[i].text())));
    for (const sft::TensorInfo& tensor : file.table(std::move(tensors)).tensors)
      if (!inside(tensor, size)) __builtin_trap();
  } catch (const sft::Error& e) {
    if (e.kind != sft::Kind::input || sft::printable(e.message, SIZE_MAX) != e.message)
      __builtin_trap();
  }
  return 0;
}
