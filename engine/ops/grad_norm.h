// Sum of squares over ranges of a flat gradient buffer: the square of the norm that clipping uses.
#pragma once

#include <span>

#include "engine/context.h"

namespace sft {

// ranges: dense f32. The sum is in double, in an order that depends on the sizes alone. Finite iff
// every gradient is: the caller's test for skipping an update. Reads 4 bytes per element.
// On a GPU the one op that hands a number to the host, 8 bytes: it waits for the stream.
double grad_norm(Context& ctx, std::span<const Tensor> ranges);

namespace cuda {  // grad_norm.cu
[[gnu::weak]] double grad_norm(Context& ctx, std::span<const Tensor> ranges);
}  // namespace cuda

}  // namespace sft
