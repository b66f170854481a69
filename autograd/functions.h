// Every differentiable function: calls the op of the same name, records its backward. Shapes and
// equations stand in engine/ops/NAME.h. Optional inputs are empty Vars.
#pragma once

#include "autograd/tape.h"
#include "engine/segments.h"

namespace sft {

// A loss: ignores dy. labels and weights [N] outlive the backward.
Var cross_entropy(Tape& t, Var logits, std::span<const int32_t> labels,
                  std::span<const float> weights);
Var layer_norm(Tape& t, Var x, Var weight, Var bias, float eps);

}  // namespace sft
