// A weight that is kept as [inputs, outputs], for linear layers, which read [outputs, inputs].
#pragma once

#include "engine/context.h"

namespace sft {

// w [K, N] f32 -> [N, K], a temporary.
Tensor transpose(Context& ctx, Tensor w);

namespace cuda {  // transpose.cu
[[gnu::weak]] void transpose(Context& ctx, Tensor w, Tensor out);
}  // namespace cuda

}  // namespace sft
