// Mean over the frames of each utterance: y[b] = sum_t x[t] / T_b.
#pragma once

#include "engine/context.h"
#include "engine/segments.h"

namespace sft {

// x [T, C] f32, rows may be strided -> [B, C]; an utterance without frames gives zeros. Sums in f32
// over blocks of 64 frames, and over blocks. Memory-bound: 4TC bytes.
Tensor segment_mean_forward(Context& ctx, Tensor x, const Segments& segments);

// dy [B, C] -> dx [T, C] = dy[b] / T_b.
void segment_mean_backward(Context& ctx, Tensor dy, const Segments& segments, Grad dx);

}  // namespace sft
