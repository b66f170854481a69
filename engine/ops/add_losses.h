// The loss of an update, added up where the losses of its micro-batches lie:
//
//   total += sum_n weight_n loss_n
#pragma once

#include <span>

#include "engine/context.h"

namespace sft {

// losses [N] f32; weights [N]; total [1] f64, in memory of the context. Summed in double.
void add_losses(Context& ctx, Tensor losses, std::span<const float> weights, Tensor total);

namespace cuda {  // add_losses.cu
[[gnu::weak]] void add_losses(Context& ctx, Tensor losses, std::span<const float> weights,
                              Tensor total);
}  // namespace cuda

}  // namespace sft
