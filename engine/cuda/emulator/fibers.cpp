#include "engine/cuda/emulator/fibers.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>

#include "engine/check.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace sft::cuda::emulator {
namespace {

using boost::context::detail::jump_fcontext;
using boost::context::detail::make_fcontext;
using boost::context::detail::transfer_t;

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 << 10;  // its frames are larger

void before_switch(void** fake_stack, const Fiber& to) {
  __sanitizer_start_switch_fiber(fake_stack, to.bottom, to.bytes);
}

// Where the program's own stack lies is known once it has been left.
void after_switch(void* fake_stack, Fiber& from) {
  const void* bottom = nullptr;
  size_t bytes = 0;
  __sanitizer_finish_switch_fiber(fake_stack, &bottom, &bytes);
  if (from.bottom) return;
  from.bottom = static_cast<unsigned char*>(const_cast<void*>(bottom));
  from.bytes = bytes;
}

// Of the fiber that ran on this stack before: those it never returned from lie at its top.
void forget_frames(const Fiber& fiber) {
  __asan_unpoison_memory_region(fiber.bottom + fiber.bytes - (16 << 10), 16 << 10);
}
#else
constexpr size_t kStackBytes = 64 << 10;

void before_switch(void**, const Fiber&) {}
void after_switch(void*, const Fiber&) {}
void forget_frames(const Fiber&) {}
#endif

// The fiber that was switched from can now be switched to.
void arrive(transfer_t transfer, void* fake_stack) {
  Fiber& from = *static_cast<Fiber*>(transfer.data);
  from.context = transfer.fctx;
  after_switch(fake_stack, from);
}

void begin(transfer_t transfer) {
  Fiber& self = *static_cast<Fiber*>(transfer.data)->switches_to;
  arrive(transfer, nullptr);
  self.entry(self);
  std::abort();
}

void map_stack(Fiber& fiber) {
  const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* memory = mmap(nullptr, page + kStackBytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory, page, PROT_NONE) != 0)
    fail(Kind::resource, "emulator: no memory for the stack of a thread");
  fiber.bottom = static_cast<unsigned char*>(memory) + page;
  fiber.bytes = kStackBytes;
}

}  // namespace

Fiber& FiberPool::start(void (*entry)(Fiber&)) {
  if (free_.empty()) {
    map_stack(all_.emplace_back());
    free_.push_back(&all_.back());
    // Frames of different stacks fall into different sets of the cache.
    all_.back().offset = all_.size() % 64 * 64;
  }
  Fiber& fiber = *free_.back();
  free_.pop_back();
  forget_frames(fiber);
  fiber.entry = entry;
  fiber.context =
      make_fcontext(fiber.bottom + fiber.bytes - fiber.offset, fiber.bytes - fiber.offset, begin);
  return fiber;
}

void switch_fiber(Fiber& from, Fiber& to) {
  from.switches_to = &to;
  before_switch(&from.fake_stack, to);
  const transfer_t transfer = jump_fcontext(to.context, &from);
  arrive(transfer, from.fake_stack);
}

void leave_fiber(Fiber& from, Fiber& to) {
  from.switches_to = &to;
  before_switch(nullptr, to);
  jump_fcontext(to.context, &from);
  std::abort();
}

}  // namespace sft::cuda::emulator
