// What must hold for every table that a reader accepts.
#pragma once

#include "engine/check.h"
#include "engine/formats/byte_reader.h"
#include "engine/formats/tensor_file.h"

namespace sft::fuzz {

// In file order, inside the file, one after the other, of the size that type and shape say.
inline bool sound(const TensorTable& table, uint64_t file_size) {
  uint64_t end = 0;
  for (const TensorInfo& tensor : table.tensors) {
    if (tensor.offset < end || tensor.offset > file_size) return false;
    if (tensor.bytes > file_size - tensor.offset) return false;
    if (static_cast<int64_t>(tensor.bytes) != bytes_of(tensor.dtype, tensor.shape.count()))
      return false;
    if (printable(tensor.name, SIZE_MAX) != tensor.name) return false;
    end = tensor.offset + tensor.bytes;
  }
  return true;
}

// Runs parse(start of the file) on the whole file and on its first half. It must return a sound
// table, or throw an Error of kind input; on the half it may ask for more, once, by a number of
// bytes the file has.
template <class Parse>
void try_parse(std::span<const std::byte> bytes, Parse&& parse) {
  try {
    if (!sound(parse(bytes), bytes.size())) __builtin_trap();
    if (!sound(parse(bytes.first(bytes.size() / 2)), bytes.size())) __builtin_trap();
  } catch (const NeedMoreBytes& need) {
    if (need.bytes <= bytes.size() / 2 || need.bytes > bytes.size()) __builtin_trap();
  } catch (const Error& e) {
    if (e.kind != Kind::input || printable(e.message, SIZE_MAX) != e.message) __builtin_trap();
  }
}

}  // namespace sft::fuzz
