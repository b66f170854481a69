// Memory for each thread of a parallel loop.
#pragma once

#include <omp.h>

#include "engine/context.h"

namespace sft::cpu {

// In scratch.
class ThreadScratch {
 public:
  ThreadScratch() = default;
  ThreadScratch(Context& ctx, int64_t floats)
      : step_((floats + 15) / 16 * 16),
        base_(static_cast<float*>(ctx.scratch.take(step_ * omp_get_max_threads() * 4))) {}
  float* mine() const { return base_ + omp_get_thread_num() * step_; }

 private:
  int64_t step_ = 0;
  float* base_ = nullptr;
};

}  // namespace sft::cpu
