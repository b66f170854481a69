// Waveform normalisation: (x - mean) / sqrt(variance + eps) over the samples of each utterance,
// biased variance, sums in double. Not differentiable.
#pragma once

#include "engine/context.h"
#include "engine/segments.h"

namespace sft {

// wave [S] f32 -> [S]. Samples of a slot behind its valid ones become exactly 0.
Tensor wave_norm(Context& ctx, Tensor wave, Slots slots, double eps);

namespace cuda {  // wave_norm.cu
[[gnu::weak]] void wave_norm(Context& ctx, Tensor wave, Slots slots, double eps, Tensor out);
}

}  // namespace sft
