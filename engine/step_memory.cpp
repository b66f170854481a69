#include "engine/step_memory.h"

#include <algorithm>

#include "engine/cuda/runtime.h"

namespace sft {

void StepMemory::forget_peak() {
  plan_acts_.rewind(), plan_scratch_.rewind();
  plan_acts_.forget_peak(), plan_scratch_.forget_peak();
}

Context StepMemory::context(Prepared& prepared, Math math, bool dry) {
  const bool plan = dry || !gpu_;
  CHECK(plan || committed_, "a step on a device without memory: commit() comes first");
  Arena& acts = plan ? plan_acts_ : committed_->acts;
  Arena& scratch = plan ? plan_scratch_ : committed_->scratch;
  acts.rewind(), scratch.rewind();
  return {.device = gpu_ ? Device::cuda : Device::cpu,
          .acts = acts,
          .scratch = scratch,
          .prepared = prepared,
          .dry = dry,
          .gpu = gpu_,
          .math = math};
}

void StepMemory::commit() {
  if (!gpu_) return;
  const int64_t acts = std::max<int64_t>(plan_acts_.peak(), 1 << 20);
  const int64_t scratch = std::max<int64_t>(plan_scratch_.peak(), 1 << 20);
  if (committed_ && committed_->acts_bytes >= acts && committed_->scratch_bytes >= scratch) return;
  committed_.reset();
  if (const int64_t free = gpu_->free_bytes(); acts + scratch > free)
    fail(Kind::resource, Hint{"shorter utterances, or --device cpu"},
         "a step needs {} MiB of device memory, {} MiB are free", (acts + scratch) >> 20,
         free >> 20);
  committed_.reset(
      new Committed{Arena(acts, false, gpu_), Arena(scratch, false, gpu_), acts, scratch});
}

int64_t largest_that_fits(int64_t most, int64_t available,
                          const std::function<int64_t(int64_t n)>& bytes) {
  int64_t fits = 0, above = most + 1;
  while (above - fits > 1) {
    const int64_t n = fits + (above - fits) / 2;
    (bytes(n) <= available ? fits : above) = n;
  }
  return fits;
}

}  // namespace sft
