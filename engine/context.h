// Context: the first argument of every op. Nothing about "the current device" is global.
#pragma once

#include <cstdint>

#include "engine/arena.h"
#include "engine/math.h"
#include "engine/prepared.h"
#include "engine/profile.h"
#include "engine/rng.h"

namespace sft {

struct Context {
  Device device = Device::cpu;
  Arena& acts;         // activations: grows through forward
  Arena& scratch;      // gradients inside a block, and temporaries of one op
  Prepared& prepared;  // derived weights
  Rng rng;
  // A dry step takes all the memory a real one would, and computes nothing: this is how the plan of
  // memory is made. Every op returns as soon as it has allocated.
  bool dry = false;
  Profile* profile = nullptr;    // not null: ops record their time, bytes and FLOPs
  cuda::Runtime* gpu = nullptr;  // of Device::cuda; does nothing in dry steps
  Math math = Math::exact;

  // What the first op of a step makes its activations of; every later op follows its input. Norms,
  // losses, statistics and gradients of parameters are f32.
  Dtype compute() const {
    return device == Device::cuda && math == Math::bf16 ? Dtype::bf16 : Dtype::f32;
  }

  // An activation; with room for bucket_rows(shape[0]) rows if it is a matrix (arena.h).
  Tensor activation(Shape shape, Dtype dtype = Dtype::f32) {
    return acts.tensor(shape, dtype, dry);
  }
  Tensor temporary(Shape shape, Dtype dtype = Dtype::f32) {
    return scratch.tensor(shape, dtype, dry);
  }
  // Memory for the gradient of a value, say: with room if it has room.
  Tensor like(Arena& arena, const Tensor& value) const {
    return value.room ? arena.tensor(value.shape, value.dtype, dry)
                      : arena.loose(value.shape, value.dtype);
  }
};

// The derived form `kind` of a weight: `count` numbers of type T that make(T*) writes. Kept while
// `weight` is a parameter and unchanged; made anew in scratch at every call if it is no parameter.
template <class T = float, class Make>
T* derived(Context& ctx, const void* weight, uint32_t kind, int64_t count, Make&& make) {
  const int64_t bytes = count * static_cast<int64_t>(sizeof(T));
  if (!ctx.prepared.owns(weight)) {
    T* memory = static_cast<T*>(ctx.scratch.take(bytes));
    if (!ctx.dry) make(memory);
    return memory;
  }
  Prepared::Form& form = ctx.prepared.form(weight, kind, bytes);
  T* memory = reinterpret_cast<T*>(form.memory.get());
  if (!form.current && !ctx.dry) {
    make(memory);
    form.current = true;
  }
  return memory;
}

}  // namespace sft
