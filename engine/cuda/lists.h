// Host lists that kernels read: segments, indices, labels, weights of losses.
#pragma once

#include <span>

#include "engine/context.h"
#include "engine/cuda/runtime.h"

namespace sft::cuda {

// The list in device memory, for the op that asks, inside its ScratchScope: in scratch, or among
// the lists of the step.
template <class T>
const T* on_device(Context& ctx, std::span<const T> list) {
  const auto bytes = static_cast<int64_t>(list.size_bytes());
  void* to = ctx.scratch.take(bytes);
  if (ctx.dry || !bytes) return static_cast<const T*>(to);
  return static_cast<const T*>(ctx.gpu->list(to, list.data(), bytes));
}

}  // namespace sft::cuda
