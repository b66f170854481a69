// The norm of the gradients that an update has: what clipping compares with its limit.
//
//   norm = sqrt(sum_i g_i^2)
#pragma once

#include <span>

#include "engine/context.h"

namespace sft {

// ranges: dense f32, of a flat gradient buffer; norm [1] f64: in memory of the context, read by
// adam. The sum is in double, in an order that depends on the sizes alone. Finite iff every
// gradient is: otherwise the update is skipped. Reads 4 bytes per element.
void grad_norm(Context& ctx, std::span<const Tensor> ranges, Tensor norm);

namespace cuda {  // grad_norm.cu
[[gnu::weak]] void grad_norm(Context& ctx, std::span<const Tensor> ranges, Tensor norm);
}  // namespace cuda

}  // namespace sft
