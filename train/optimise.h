// One update of the ranges of a store that are active: the norm over all of them, then Adam on
// each, in one pass that also writes the bf16 copy that products read. Nothing of it is known to
// the host of a device; engine/ops/adam.h says when it is skipped.
#pragma once

#include "engine/ops/adam.h"
#include "engine/params.h"

namespace sft {

// loss, norm: [1] f64 in memory of the context; norm is written. Gradients that nothing wrote in
// this step are zero.
void optimise(Context& ctx, ParamStore& store, const AdamRule& rule, Tensor loss, Tensor norm);

}  // namespace sft
