#include "engine/tensor.h"

namespace sft {

std::string_view name(Dtype dtype) {
  switch (dtype) {
    case Dtype::f32:
      return "f32";
    case Dtype::f64:
      return "f64";
    case Dtype::f16:
      return "f16";
    case Dtype::bf16:
      return "bf16";
    case Dtype::q8_0:
      return "q8_0";
    case Dtype::i8:
      return "i8";
    case Dtype::u8:
      return "u8";
    case Dtype::i16:
      return "i16";
    case Dtype::i32:
      return "i32";
    case Dtype::i64:
      return "i64";
    case Dtype::boolean:
      return "bool";
  }
  return "?";
}

int64_t bytes_of(Dtype dtype, int64_t count) {
  switch (dtype) {
    case Dtype::f64:
    case Dtype::i64:
      return 8 * count;
    case Dtype::f32:
    case Dtype::i32:
      return 4 * count;
    case Dtype::f16:
    case Dtype::bf16:
    case Dtype::i16:
      return 2 * count;
    case Dtype::q8_0:
      return count / 32 * 34;
    case Dtype::i8:
    case Dtype::u8:
    case Dtype::boolean:
      return count;
  }
  return 0;
}

Shape::Shape(std::span<const int64_t> dims) : rank_(static_cast<int>(dims.size())) {
  CHECK(rank_ <= kMaxRank, "shape: {} dimensions (at most {})", rank_, kMaxRank);
  for (int i = 0; i < rank_; ++i) dims_[i] = dims[i];
}

int64_t Shape::count() const {
  int64_t n = 1;
  for (int64_t d : dims()) n *= d;
  return n;
}

std::string text(const Shape& shape) {
  std::string out = "[";
  for (int i = 0; i < shape.rank(); ++i) out += fmt::format("{}{}", i ? ", " : "", shape[i]);
  return out + "]";
}

void Tensor::wrong_type(Dtype wanted) const {
  fail(Kind::internal, "tensor {} holds {}, not {}", shape, sft::name(dtype), sft::name(wanted));
}

Tensor Tensor::columns(int64_t first, int64_t width) const {
  CHECK(shape.rank() == 2 && first >= 0 && first + width <= shape[1],
        "columns [{}, {}) of a tensor {}", first, first + width, shape);
  Tensor view = *this;
  view.data = static_cast<char*>(data) + bytes_of(dtype, first);
  view.shape = {shape[0], width};
  return view;
}

Tensor Tensor::slice(int64_t first, int64_t count) const {
  CHECK(shape.rank() >= 1 && first >= 0 && first + count <= shape[0],
        "rows [{}, {}) of a tensor {}", first, first + count, shape);
  const int64_t step = shape.rank() == 2 ? row_stride : this->count() / (shape[0] ? shape[0] : 1);
  std::array<int64_t, Shape::kMaxRank> dims{};
  for (int i = 0; i < shape.rank(); ++i) dims[i] = shape[i];
  dims[0] = count;
  Tensor view = *this;
  view.data = static_cast<char*>(data) + bytes_of(dtype, first * step);
  view.shape = Shape(std::span<const int64_t>(dims.data(), shape.rank()));
  if (shape.rank() == 1) view.row_stride = count;
  view.room = 0;
  return view;
}

Tensor Tensor::reshaped(Shape to) const {
  CHECK(dense() && to.count() == count(), "reshape of {} to {}", shape, to);
  return Tensor(data, to, dtype, device);
}

}  // namespace sft
