// Tensor: a typed view of memory that an arena, a store or a file owns. Trivially copyable.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

#include "engine/check.h"

namespace sft {

enum class Dtype : uint8_t { f32, f64, f16, bf16, q8_0, i8, u8, i16, i32, i64, boolean };
enum class Device : uint8_t { cpu, cuda };

std::string_view name(Dtype dtype);
// Bytes of `count` elements. q8_0: blocks of 32 elements in 34 bytes; count % 32 == 0.
int64_t bytes_of(Dtype dtype, int64_t count);

template <class T>
struct dtype_of;
template <>
struct dtype_of<float> {
  static constexpr Dtype value = Dtype::f32;
};
template <>
struct dtype_of<double> {
  static constexpr Dtype value = Dtype::f64;
};
template <>
struct dtype_of<int32_t> {
  static constexpr Dtype value = Dtype::i32;
};
template <>
struct dtype_of<int64_t> {
  static constexpr Dtype value = Dtype::i64;
};
template <>
struct dtype_of<uint8_t> {
  static constexpr Dtype value = Dtype::u8;
};

// At most four dimensions, row-major.
class Shape {
 public:
  static constexpr int kMaxRank = 4;

  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) : Shape(std::span(dims.begin(), dims.size())) {}
  explicit Shape(std::span<const int64_t> dims);

  int rank() const { return rank_; }
  int64_t operator[](int i) const { return dims_[i]; }
  int64_t front() const { return dims_[0]; }
  int64_t back() const { return dims_[rank_ - 1]; }
  int64_t count() const;  // product; 1 for a scalar
  std::span<const int64_t> dims() const { return {dims_.data(), static_cast<size_t>(rank_)}; }
  bool operator==(const Shape&) const = default;

 private:
  std::array<int64_t, kMaxRank> dims_{};
  int rank_ = 0;
};

std::string text(const Shape& shape);  // "[3, 4]"

struct Tensor {
  void* data = nullptr;
  Shape shape;             // row-major; dense within a row (the last dimension)
  int64_t row_stride = 0;  // elements from row to row; > shape.back() for q inside qkv
  int64_t room = 0;        // rows of a matrix of an arena, and of its columns; 0: only its own
  Dtype dtype = Dtype::f32;
  Device device = Device::cpu;

  Tensor() = default;
  Tensor(void* data, Shape shape, Dtype dtype = Dtype::f32, Device device = Device::cpu)
      : data(data),
        shape(shape),
        row_stride(shape.rank() ? shape.back() : 1),
        dtype(dtype),
        device(device) {}

  template <class T>
  T* as() const {
    if (dtype != dtype_of<T>::value) [[unlikely]]
      wrong_type(dtype_of<T>::value);
    return static_cast<T*>(data);
  }
  [[noreturn]] void wrong_type(Dtype wanted) const;
  float* f32() const { return as<float>(); }
  // Row r of a matrix view.
  float* row(int64_t r) const { return f32() + r * row_stride; }

  explicit operator bool() const { return data != nullptr; }
  int64_t count() const { return shape.count(); }
  int64_t width() const { return shape.back(); }                              // C of [T, C]
  int64_t rows() const { return shape.back() ? count() / shape.back() : 0; }  // T of [T, C]
  bool dense() const { return shape.rank() == 0 || row_stride == shape.back(); }
  int64_t bytes() const { return bytes_of(dtype, count()); }  // of a dense tensor

  // Columns [first, first + width) of every row; rows [first, first + count) of dimension 0.
  Tensor columns(int64_t first, int64_t width) const;
  Tensor slice(int64_t first, int64_t count) const;
  Tensor reshaped(Shape shape) const;  // dense only
};

// Where a backward writes, and whether something is already there.
struct Grad {
  Tensor to;
  bool add = false;  // true: to += ... ; false: to = ... (every element is written)
  explicit operator bool() const { return static_cast<bool>(to); }  // false: nobody wants it
};

}  // namespace sft

#ifndef __CUDACC__
template <>
struct fmt::formatter<sft::Shape> {
  constexpr auto parse(fmt::format_parse_context& ctx) { return ctx.begin(); }
  auto format(const sft::Shape& shape, fmt::format_context& ctx) const {
    return fmt::format_to(ctx.out(), "{}", sft::text(shape));
  }
};

template <>
struct fmt::formatter<sft::Dtype> {
  constexpr auto parse(fmt::format_parse_context& ctx) { return ctx.begin(); }
  auto format(sft::Dtype dtype, fmt::format_context& ctx) const {
    return fmt::format_to(ctx.out(), "{}", sft::name(dtype));
  }
};
#endif
