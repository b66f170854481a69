// Mean over the frames of each utterance: y[b] = sum_t x[t] / T_b.
#pragma once

#include "engine/context.h"
#include "engine/segments.h"

namespace sft {

// x [T, C], rows may be strided -> [B, C]; an utterance without frames gives zeros. Sums in f32
// over parts of the frames, and over those. Memory-bound: 4TC bytes.
Tensor segment_mean_forward(Context& ctx, Tensor x, const Segments& segments);

// dy [B, C] -> dx [T, C] = dy[b] / T_b.
void segment_mean_backward(Context& ctx, Tensor dy, const Segments& segments, Grad dx);

namespace cuda {  // segment_mean.cu
[[gnu::weak]] void segment_mean_forward(Context& ctx, Tensor x, const Segments& segments, Tensor y);
[[gnu::weak]] void segment_mean_backward(Context& ctx, Tensor dy, const Segments& segments,
                                         Grad dx);
}  // namespace cuda

}  // namespace sft
