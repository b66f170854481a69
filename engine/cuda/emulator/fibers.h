// Stacks that the emulator's threads run on, and the switch from one to another. Boost.Context's
// assembly is called directly: a switch is then one jump, from any fiber to any other. Stacks have
// a guard page below them and are kept for the life of the program.
#pragma once

#include <boost/context/detail/fcontext.hpp>

#include <cstddef>
#include <deque>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace sft::cuda::emulator {

struct Fiber {
  boost::context::detail::fcontext_t context = nullptr;  // where it goes on
  void* fake_stack = nullptr;                            // AddressSanitizer's, while it waits
  unsigned char* bottom = nullptr;
  size_t bytes = 0;
  size_t offset = 0;  // from its top to the first frame
  void (*entry)(Fiber&) = nullptr;
  Fiber* switches_to = nullptr;  // tells a new fiber who it is
};

class FiberPool {
 public:
  // A fiber that runs entry(fiber) when first switched to; entry never returns.
  Fiber& start(void (*entry)(Fiber&));
  // It may still run until it leaves.
  void give_back(Fiber& fiber) { free_.push_back(&fiber); }

 private:
  std::deque<Fiber> all_;
  std::vector<Fiber*> free_;
};

// ---- switches. Inline: each return after a jump is one that the processor predicts wrongly.
#if defined(__SANITIZE_ADDRESS__)
inline void before_switch(void** fake_stack, const Fiber& to) {
  __sanitizer_start_switch_fiber(fake_stack, to.bottom, to.bytes);
}
// Where the program's own stack lies is known once it has been left.
inline void after_switch(void* fake_stack, Fiber& from) {
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(fake_stack, &bottom, &bytes);
  if (from.bottom) return;
  from.bottom = static_cast<unsigned char*>(const_cast<void*>(bottom));
  from.bytes = bytes;
}
#else
inline void before_switch(void**, const Fiber&) {}
inline void after_switch(void*, const Fiber&) {}
#endif

// The fiber that was switched from can now be switched to.
inline void arrive(boost::context::detail::transfer_t transfer, void* fake_stack) {
  Fiber& from = *static_cast<Fiber*>(transfer.data);
  from.context = transfer.fctx;
  after_switch(fake_stack, from);
}

// Goes on in `to`; returns when somebody switches to `from`.
[[gnu::always_inline]] inline void switch_fiber(Fiber& from, Fiber& to) {
  from.switches_to = &to;
  before_switch(&from.fake_stack, to);
  arrive(boost::context::detail::jump_fcontext(to.context, &from), from.fake_stack);
}

// The same where `from` will never be switched to again.
[[noreturn]] inline void leave_fiber(Fiber& from, Fiber& to) {
  from.switches_to = &to;
  before_switch(nullptr, to);
  boost::context::detail::jump_fcontext(to.context, &from);
  __builtin_unreachable();
}

}  // namespace sft::cuda::emulator
