// Between host memory and dense tensors of a context, wherever they lie. In the order of the ops:
// what is read was computed, what is written is there for the next op.
#pragma once

#include "engine/context.h"
#include "engine/cuda/runtime.h"

namespace sft {

void zero(const Context& ctx, Tensor to);
// All bytes of the tensor, as they are.
void write(const Context& ctx, const void* from, Tensor to);
void read(const Context& ctx, Tensor from, void* to);
// Before a read inside a step of a device: what was asked for so far is done.
void flush(const Context& ctx);
void copy(const Context& ctx, Tensor from, Tensor to);  // both of the context
// The few bytes of a tensor as they are now, for the host to read when it needs them.
cuda::Late late(const Context& ctx, Tensor from);
// The tensor as f32 where the host can read it: itself, or a copy in `host`.
Tensor on_host(const Context& ctx, Tensor tensor, Arena& host);

}  // namespace sft
