#include "engine/formats/npy.h"

#include "engine/check.h"

namespace sft {

TensorWriter create_npy(const std::string& path, const Shape& shape, Existing existing) {
  std::string dims;
  for (int64_t dim : shape.dims()) dims += fmt::format("{}, ", dim);
  if (shape.rank() > 1) dims.resize(dims.size() - 2);
  std::string head =
      fmt::format("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}", dims);
  constexpr size_t kFixed = 10;  // magic, version, length
  head.resize((kFixed + head.size() + 1 + 63) / 64 * 64 - kFixed - 1, ' ');
  head += '\n';
  OutputFile file(path, existing);
  file.write(std::string_view("\x93NUMPY\x01\x00", 8));
  const std::array<char, 2> length{static_cast<char>(head.size() & 0xff),
                                   static_cast<char>(head.size() >> 8)};
  file.write(std::string_view(length.data(), 2));
  file.write(head);
  return TensorWriter(std::move(file), {{"npy", shape, Dtype::f32}}, 1);
}

void write_npy(const std::string& path, const Tensor& tensor, Existing existing) {
  CHECK(tensor.dtype == Dtype::f32, "{}: npy of {} (only f32)", path, tensor.dtype);
  TensorWriter writer = create_npy(path, tensor.shape, existing);
  const auto width = static_cast<size_t>(tensor.width());
  if (tensor.dense())
    writer.append(std::as_bytes(std::span(tensor.f32(), static_cast<size_t>(tensor.count()))));
  else
    for (int64_t r = 0; r < tensor.rows(); ++r)
      writer.append(std::as_bytes(std::span(tensor.row(r), width)));
  writer.finish();
}

}  // namespace sft
