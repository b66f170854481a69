// Host lists that kernels read: segments, indices, labels, weights of losses.
#pragma once

#include <span>

#include "engine/context.h"
#include "engine/cuda/runtime.h"

namespace sft::cuda {

// The list in device memory, in scratch: for the op that asks, inside its ScratchScope.
template <class T>
const T* on_device(Context& ctx, std::span<const T> list) {
  const auto bytes = static_cast<int64_t>(list.size_bytes());
  T* to = static_cast<T*>(ctx.scratch.take(bytes));
  if (!ctx.dry && bytes) ctx.gpu->upload(to, list.data(), bytes);
  return to;
}

}  // namespace sft::cuda
