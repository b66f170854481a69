#include "tests/allocations.h"

#include <cstdlib>
#include <new>

extern "C" char __executable_start, etext;  // of the program, from the linker

namespace sft::test {
namespace {

thread_local bool counting = false;
thread_local int64_t count = 0;

bool ours(const void* caller) {
  const auto* p = static_cast<const char*>(caller);
  return p >= &__executable_start && p < &etext;
}

void* allocate(size_t bytes, const void* caller) {
  if (counting && ours(caller)) ++count;
  return std::malloc(bytes ? bytes : 1);
}

}  // namespace

void count_allocations(bool on) { counting = on, count = 0; }
int64_t allocations() { return count; }

}  // namespace sft::test

void* operator new(size_t bytes) {
  if (void* memory = sft::test::allocate(bytes, __builtin_return_address(0))) return memory;
  throw std::bad_alloc();
}
// Temporary buffers of the standard library: in a sanitised build all of a family must be replaced.
void* operator new(size_t bytes, const std::nothrow_t&) noexcept {
  return sft::test::allocate(bytes, __builtin_return_address(0));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
