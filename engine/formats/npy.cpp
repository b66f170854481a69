#include "engine/formats/npy.h"

#include "engine/check.h"

namespace sft {

void write_npy(const std::string& path, const Tensor& tensor, Existing existing) {
  CHECK(tensor.dtype == Dtype::f32, "{}: npy of {} (only f32)", path, tensor.dtype);
  std::string shape;
  for (int64_t dim : tensor.shape.dims()) shape += fmt::format("{}, ", dim);
  if (tensor.shape.rank() > 1) shape.resize(shape.size() - 2);
  std::string head =
      fmt::format("{{'descr': '<f4', 'fortran_order': False, 'shape': ({}), }}", shape);
  constexpr size_t kFixed = 10;  // magic, version, length
  head.resize((kFixed + head.size() + 1 + 63) / 64 * 64 - kFixed - 1, ' ');
  head += '\n';
  OutputFile file(path, existing);
  file.write(std::string_view("\x93NUMPY\x01\x00", 8));
  const std::array<char, 2> length{static_cast<char>(head.size() & 0xff),
                                   static_cast<char>(head.size() >> 8)};
  file.write(std::string_view(length.data(), 2));
  file.write(head);
  if (tensor.dense()) {
    file.write(std::as_bytes(std::span(tensor.f32(), static_cast<size_t>(tensor.count()))));
  } else {
    const auto width = static_cast<size_t>(tensor.width());
    for (int64_t r = 0; r < tensor.rows(); ++r)
      file.write(std::as_bytes(std::span(tensor.row(r), width)));
  }
  file.commit();
}

}  // namespace sft
