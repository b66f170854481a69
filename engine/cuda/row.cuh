// Rows of matrices in vectors of 8 elements, as floats. Any width; 16-byte accesses where they are
// possible.
#pragma once

#include "engine/cuda/device.cuh"
#include "engine/tensor.h"

namespace sft::cuda {

// A matrix as kernels take it. T is float or bf16.
template <class T>
struct Matrix {
  T* data;
  int64_t stride;  // elements
  bool whole;      // every group of 8 elements is aligned and inside of the row

  __device__ T* row(int64_t r) const { return data + r * stride; }
};

template <class T>
Matrix<T> matrix(const Tensor& t) {
  const bool aligned = reinterpret_cast<uintptr_t>(t.data) % 16 == 0;
  const int64_t stride = t.shape.rank() ? t.row_stride : 1;
  return {static_cast<T*>(t.data), stride,
          aligned && stride % 8 == 0 && (t.shape.rank() == 0 || t.shape.back() % 8 == 0)};
}

// Elements [c, c + 8) of a row of C; zeros past its end.
template <class T>
__device__ Float8 load_row(const T* row, int c, int C, bool whole) {
  if (whole) return load8(row + c);
  Float8 out{};
  for (int i = 0; i < 8 && c + i < C; ++i) out.v[i] = to_float(row[c + i]);
  return out;
}

template <class T>
__device__ void store_row(T* row, int c, int C, bool whole, const Float8& value) {
  if (whole) return store8(row + c, value);
  for (int i = 0; i < 8 && c + i < C; ++i) row[c + i] = from_float<T>(value.v[i]);
}

__device__ __forceinline__ void add8(Float8& to, const Float8& x) {
#pragma unroll
  for (int k = 0; k < 8; ++k) to.v[k] += x.v[k];
}

// Calls f.operator()<T>() with the element type of activations.
template <class F>
void with_element(Dtype dtype, F&& f) {
  if (dtype == Dtype::bf16)
    f.template operator()<bf16>();
  else
    f.template operator()<float>();
}

}  // namespace sft::cuda
