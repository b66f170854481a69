// Storage types <-> f32, over arrays. To a narrower type: round to nearest even, overflow to
// infinity, NaN stays NaN.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "engine/tensor.h"

namespace sft {

void f16_to_f32(const uint16_t* from, float* to, int64_t count);
void f32_to_f16(const float* from, uint16_t* to, int64_t count);
void bf16_to_f32(const uint16_t* from, float* to, int64_t count);
void f32_to_bf16(const float* from, uint16_t* to, int64_t count);

// Q8_0 (ggml): per 32 elements an f16 scale d = max|x| / 127 and 32 int8 q = round(x / d), halves
// away from zero; 34 bytes. The same bits as gguf-py's quantize. A block with a value that is not
// finite becomes all NaN. count % 32 == 0.
void q8_0_to_f32(const std::byte* from, float* to, int64_t count);
void f32_to_q8_0(const float* from, std::byte* to, int64_t count);

// Any of f32, f64, f16, bf16, q8_0; other types are a caller's mistake. Sizes in bytes are those
// of bytes_of(dtype, count).
bool is_real(Dtype dtype);
void to_f32(Dtype dtype, const std::byte* from, float* to, int64_t count);
void from_f32(const float* from, Dtype dtype, std::byte* to, int64_t count);

// Position of the first that is infinite or no number; count where all are finite.
int64_t first_not_finite(const float* from, int64_t count);

}  // namespace sft
