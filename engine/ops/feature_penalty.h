// The mean square of an utterance's features: HuBERT's and wav2vec 2.0's penalty on the output of
// the convolutions.
//
//   loss_b = sum x_tc^2 / (T_b C),   dx_tc = weight_b 2 x_tc / (T_b C)
#pragma once

#include <span>

#include "engine/context.h"
#include "engine/segments.h"

namespace sft {

// x [T, C] -> losses [B], without weights; sums of rows are added in double.
Tensor feature_penalty_forward(Context& ctx, Tensor x, Segments segments);

// weights [B]: the gradient is that of sum_b weight_b loss_b.
void feature_penalty_backward(Context& ctx, Tensor x, Segments segments,
                              std::span<const float> weights, Grad dx);

namespace cuda {  // feature_penalty.cu
[[gnu::weak]] void feature_penalty_forward(Context& ctx, Tensor x, const Segments& segments,
                                           Tensor losses);
[[gnu::weak]] void feature_penalty_backward(Context& ctx, Tensor x, const Segments& segments,
                                            std::span<const float> weights, Grad dx);
}  // namespace cuda

}  // namespace sft
