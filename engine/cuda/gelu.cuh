// GELU, the erf form (Hendrycks & Gimpel 2016, arXiv:1606.08415): x Phi(x), and its slope, from one
// exponential. With t = min(|x|, 13):
//   e = exp(-t^2 / 2),  Phi(-t) = e R(t),  R(t) = u P(u), u = 1 / (1 + 0.3 t)
// so that the negative tail keeps its relative accuracy. P is that of engine/cpu/vector_math-inl.h,
// 1.3e-7 relative. About 20 instructions, two of them on the special function unit; erff and expf
// of the toolkit would take twice as many for both. NaN in, NaN out.
#pragma once

#include "engine/cuda/device.cuh"

namespace sft::cuda {

struct Gelu {
  float value;  // x Phi(x); error below 3e-7 max(1, |x|)
  float slope;  // Phi(x) + x exp(-x^2 / 2) / sqrt(2 pi); error below 6e-7
};

__device__ __forceinline__ Gelu gelu_and_slope(float x) {
  constexpr float density = 0.398942280f;  // 1 / sqrt(2 pi)
  const float size = fabsf(x), t = size > 13 ? 13 : size;
  const float e = __expf(-0.5f * t * t);
  const float u = __fdividef(1.0f, 1 + 0.3f * t);
  float p = 3.608882055e-2f;
  p = p * u - 1.589336544e-1f;
  p = p * u + 2.093462795e-1f;
  p = p * u - 5.645000935e-2f;
  p = p * u + 1.300325841e-1f;
  p = p * u + 9.946507215e-2f;
  p = p * u + 1.208263114e-1f;
  p = p * u + 1.196245402e-1f;
  const float ratio = u * p, below = e * (ratio - t * density);
  return {fmaxf(x, 0) - t * (e * ratio), x < 0 ? below : 1 - below};
}

__device__ __forceinline__ float gelu(float x) { return gelu_and_slope(x).value; }
__device__ __forceinline__ float gelu_slope(float x) { return gelu_and_slope(x).slope; }

}  // namespace sft::cuda
