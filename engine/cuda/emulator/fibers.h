// Stacks that the emulator's threads run on, and the switch from one to another. Boost.Context's
// assembly is called directly: a switch is then one jump, from any fiber to any other. Stacks have
// a guard page below them and are kept for the life of the program.
#pragma once

#include <boost/context/detail/fcontext.hpp>

#include <cstddef>
#include <deque>
#include <vector>

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
  // The fiber may still run until its next switch, a leave().
  void give_back(Fiber& fiber) { free_.push_back(&fiber); }

 private:
  std::deque<Fiber> all_;
  std::vector<Fiber*> free_;
};

// Goes on in `to`; returns when somebody switches to `from`.
void switch_fiber(Fiber& from, Fiber& to);
// The same where `from` will never be switched to again.
[[noreturn]] void leave_fiber(Fiber& from, Fiber& to);

}  // namespace sft::cuda::emulator
