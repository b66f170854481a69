#include "engine/cuda/emulator/fibers.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>

#include "engine/check.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace sft::cuda::emulator {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 << 10;  // its frames are larger

// Of the fiber that ran on this stack before: those it never returned from lie at its top.
void forget_frames(const Fiber& fiber) {
  __asan_unpoison_memory_region(fiber.bottom + fiber.bytes - (16 << 10), 16 << 10);
}
#else
constexpr size_t kStackBytes = 64 << 10;

void forget_frames(const Fiber&) {}
#endif

void begin(boost::context::detail::transfer_t transfer) {
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
  fiber.context = boost::context::detail::make_fcontext(fiber.bottom + fiber.bytes - fiber.offset,
                                                        fiber.bytes - fiber.offset, begin);
  return fiber;
}

}  // namespace sft::cuda::emulator
