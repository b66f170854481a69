#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "engine/formats/numbers.cpp"
#include <hwy/foreach_target.h>  // compiles this file once per instruction set
#include <hwy/highway.h>

#include <algorithm>
#include <cstring>

#include "engine/formats/numbers.h"

HWY_BEFORE_NAMESPACE();
namespace sft::HWY_NAMESPACE {

// Whole vectors; how many numbers those were. x86 widens f16 in one instruction since 2013, which
// what is compiled for all machines cannot use.
int64_t widen_f16(const uint16_t* from, float* to, int64_t count) {
  namespace hn = hwy::HWY_NAMESPACE;
  const hn::ScalableTag<float> wide;
  const hn::Rebind<hwy::float16_t, decltype(wide)> narrow;
  const auto lanes = static_cast<int64_t>(hn::Lanes(wide));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes)
    hn::StoreU(
        hn::PromoteTo(wide, hn::LoadU(narrow, reinterpret_cast<const hwy::float16_t*>(from + i))),
        wide, to + i);
  return i;
}

// The largest bits but for signs: those of infinity, or above, where not all are finite.
uint32_t largest_bits(const float* from, int64_t count) {
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, from + i, sizeof bits);
    largest = std::max(largest, bits & 0x7fffffffu);
  }
  return largest;
}

}  // namespace sft::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <bit>
#include <cmath>

namespace sft {

namespace {

HWY_EXPORT(widen_f16);
HWY_EXPORT(largest_bits);

// Both f16 conversions after F. Giesen, "half to float done quick" (2012): integer arithmetic and
// selects only, so that the loops vectorise.
float f32_of_f16(uint16_t half) {
  constexpr uint32_t kExponent = 0x7c00u << 13;
  const uint32_t magnitude = (half & 0x7fffu) << 13;
  const uint32_t exponent = magnitude & kExponent;
  const uint32_t normal = magnitude + ((127u - 15u) << 23);
  const uint32_t special = normal + ((128u - 16u) << 23);  // infinity, NaN
  const float tiny = std::bit_cast<float>(normal + (1u << 23)) - std::bit_cast<float>(113u << 23);
  const uint32_t bits = exponent == kExponent ? special
                        : exponent == 0       ? std::bit_cast<uint32_t>(tiny)
                                              : normal;
  return std::bit_cast<float>(bits | (half & 0x8000u) << 16);
}

uint16_t f16_of_f32(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t sign = bits & 0x80000000u, magnitude = bits ^ sign;
  const uint32_t odd = (magnitude >> 13) & 1;
  const uint32_t normal = (magnitude - ((127u - 15u) << 23) + 0xfffu + odd) >> 13;
  constexpr uint32_t kMagic = ((127u - 15u) + (23u - 10u) + 1u) << 23;  // adding it rounds
  const uint32_t tiny =
      std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + std::bit_cast<float>(kMagic)) -
      kMagic;
  const uint32_t special = magnitude > 0x7f800000u ? 0x7e00u | (magnitude >> 13 & 0x3ffu) : 0x7c00u;
  const uint32_t half = magnitude >= (127u + 16u) << 23  ? special
                        : magnitude < (127u - 14u) << 23 ? tiny
                                                         : normal;
  return static_cast<uint16_t>(half | sign >> 16);
}

uint16_t bf16_of_f32(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const uint32_t quiet = bits >> 16 | 0x40u;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded);
}

constexpr int kBlock = 32, kBlockBytes = 34;

void quantise_block(const float* x, std::byte* to) {
  float largest = 0, finite = 0;
  for (int i = 0; i < kBlock; ++i) {
    largest = std::max(largest, std::abs(x[i]));
    finite += x[i] * 0.0f;  // NaN for infinities too
  }
  const float scale = largest / 127.0f + finite;
  const float inverse = std::isfinite(1.0f / scale) ? 1.0f / scale : 0.0f;
  const uint16_t half = f16_of_f32(scale);
  std::memcpy(to, &half, 2);
  for (int i = 0; i < kBlock; ++i)
    to[2 + i] = static_cast<std::byte>(
        static_cast<int8_t>(std::isnan(finite) ? 0.0f : std::round(x[i] * inverse)));
}

}  // namespace

void f16_to_f32(const uint16_t* from, float* to, int64_t count) {
  for (int64_t i = HWY_DYNAMIC_DISPATCH(widen_f16)(from, to, count); i < count; ++i)
    to[i] = f32_of_f16(from[i]);
}

void f32_to_f16(const float* from, uint16_t* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = f16_of_f32(from[i]);
}

void bf16_to_f32(const uint16_t* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = std::bit_cast<float>(uint32_t{from[i]} << 16);
}

void f32_to_bf16(const float* from, uint16_t* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = bf16_of_f32(from[i]);
}

void q8_0_to_f32(const std::byte* from, float* to, int64_t count) {
  CHECK(count % kBlock == 0, "q8_0: {} elements are no whole blocks of 32", count);
  for (int64_t b = 0; b < count / kBlock; ++b, from += kBlockBytes, to += kBlock) {
    uint16_t half;
    std::memcpy(&half, from, 2);
    const float scale = f32_of_f16(half);
    for (int i = 0; i < kBlock; ++i) to[i] = scale * static_cast<int8_t>(from[2 + i]);
  }
}

void f32_to_q8_0(const float* from, std::byte* to, int64_t count) {
  CHECK(count % kBlock == 0, "q8_0: {} elements are no whole blocks of 32", count);
  for (int64_t b = 0; b < count / kBlock; ++b)
    quantise_block(from + b * kBlock, to + b * kBlockBytes);
}

bool is_real(Dtype dtype) {
  return dtype == Dtype::f32 || dtype == Dtype::f64 || dtype == Dtype::f16 ||
         dtype == Dtype::bf16 || dtype == Dtype::q8_0;
}

void to_f32(Dtype dtype, const std::byte* from, float* to, int64_t count) {
  CHECK(is_real(dtype), "{} is not converted to f32", dtype);
  if (count == 0) return;  // of an empty tensor both may be null, which memcpy forbids
  if (dtype == Dtype::f32) std::memcpy(to, from, bytes_of(dtype, count));
  if (dtype == Dtype::f16) f16_to_f32(reinterpret_cast<const uint16_t*>(from), to, count);
  if (dtype == Dtype::bf16) bf16_to_f32(reinterpret_cast<const uint16_t*>(from), to, count);
  if (dtype == Dtype::q8_0) q8_0_to_f32(from, to, count);
  if (dtype == Dtype::f64) std::copy_n(reinterpret_cast<const double*>(from), count, to);
}

void from_f32(const float* from, Dtype dtype, std::byte* to, int64_t count) {
  CHECK(is_real(dtype), "f32 is not converted to {}", dtype);
  if (count == 0) return;
  if (dtype == Dtype::f32) std::memcpy(to, from, bytes_of(dtype, count));
  if (dtype == Dtype::f16) f32_to_f16(from, reinterpret_cast<uint16_t*>(to), count);
  if (dtype == Dtype::bf16) f32_to_bf16(from, reinterpret_cast<uint16_t*>(to), count);
  if (dtype == Dtype::q8_0) f32_to_q8_0(from, to, count);
  if (dtype == Dtype::f64) std::copy_n(from, count, reinterpret_cast<double*>(to));
}

int64_t first_not_finite(const float* from, int64_t count) {
  constexpr int64_t kBlock = 4096;
  constexpr uint32_t kInfinity = 0x7f800000;
  for (int64_t begin = 0; begin < count; begin += kBlock) {
    const int64_t end = std::min(count, begin + kBlock);
    if (HWY_DYNAMIC_DISPATCH(largest_bits)(from + begin, end - begin) < kInfinity) continue;
    return std::find_if_not(from + begin, from + end, [](float x) { return std::isfinite(x); }) -
           from;
  }
  return count;
}

}  // namespace sft
#endif
