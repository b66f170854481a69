// The arenas of a step: activations and scratch. A dry step takes addresses only, and shows what a
// real one needs; on a device, memory of that size is allocated before the real one.
#pragma once

#include <functional>
#include <memory>

#include "engine/context.h"

namespace sft {

class StepMemory {
 public:
  // gpu null: on the CPU, where the same addresses serve dry and real steps.
  explicit StepMemory(cuda::Runtime* gpu = nullptr) : gpu_(gpu) {}

  // Runs f(Context&) as a step; on a device first dry, so that its memory is there.
  template <class F>
  void step(Prepared& prepared, Math math, F&& f) {
    if (gpu_) {
      forget_peak();
      Context dry = context(prepared, math, true);
      f(dry);
      commit();
    }
    Context ctx = context(prepared, math, false);
    f(ctx);
  }

  // For a step over `prepared` weights; both arenas are empty.
  Context context(Prepared& prepared, Math math, bool dry);
  // Of the dry contexts' steps since the last call of forget_peak.
  int64_t peak() const { return plan_acts_.peak() + plan_scratch_.peak(); }
  int64_t acts_peak() const { return plan_acts_.peak(); }
  int64_t scratch_peak() const { return plan_scratch_.peak(); }
  void forget_peak();
  // Memory for a step as large as the peak: before context(dry = false). Keeps what is enough.
  // Kind::resource with the numbers if a device has less.
  void commit();

 private:
  struct Committed {
    Arena acts, scratch;
    int64_t acts_bytes, scratch_bytes;
  };
  cuda::Runtime* gpu_;
  Arena plan_acts_, plan_scratch_;
  std::unique_ptr<Committed> committed_;  // of a device
};

// The largest of 1..most whose step needs at most `available` bytes; 0: none of them. bytes(n), of
// a dry step, grows with n.
int64_t largest_that_fits(int64_t most, int64_t available,
                          const std::function<int64_t(int64_t n)>& bytes);

}  // namespace sft
