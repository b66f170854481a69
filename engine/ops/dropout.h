// Dropout by counter (engine/rng.h), where no epilogue holds it: y = x * mask / (1 - p).
// The mask is drawn again on the way back; nothing is saved.
#pragma once

#include "engine/context.h"
#include "engine/segments.h"

namespace sft {

// x [T, C] -> y [T, C].
Tensor dropout_forward(Context& ctx, Tensor x, Dropout dropout, const Segments& segments);
void dropout_backward(Context& ctx, Tensor dy, Dropout dropout, const Segments& segments, Grad dx);

// dx = factor * dy, for a forward that is the identity (feature_grad_mult).
void scale_grad_backward(Context& ctx, Tensor dy, float factor, Grad dx);

namespace cuda {  // dropout.cu
[[gnu::weak]] void dropout_forward(Context& ctx, Tensor x, Dropout dropout,
                                   const Segments& segments, Tensor y);
[[gnu::weak]] void dropout_backward(Context& ctx, Tensor dy, Dropout dropout,
                                    const Segments& segments, Grad dx);
[[gnu::weak]] void scale_grad_backward(Context& ctx, Tensor dy, float factor, Grad dx);
}  // namespace cuda

}  // namespace sft
