// The second half of a sum over rows: what the blocks of a kernel each added up, in fixed order.
#pragma once

#include "engine/context.h"

namespace sft::cuda {

// to [width] (+)= sum_i partial[i * stride + c], i < count, in an order that count alone decides.
void sum_partials(Context& ctx, const float* partial, int64_t count, int64_t stride, int64_t width,
                  Grad to);

}  // namespace sft::cuda
