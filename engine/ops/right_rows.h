// Which rows of logits are right: right_n = 1 where the largest x_nv (the first of equals) is that
// of label(n), else 0.
#pragma once

#include <span>

#include "engine/context.h"

namespace sft {

// logits [N, V], rows may be strided; labels [N] in [0, V). -> [N] f32. Where the label's logit is
// NaN the row is wrong.
Tensor right_rows(Context& ctx, Tensor logits, std::span<const int32_t> labels);

namespace cuda {  // right_rows.cu
[[gnu::weak]] void right_rows(Context& ctx, Tensor logits, std::span<const int32_t> labels,
                              Tensor right);
}  // namespace cuda

}  // namespace sft
