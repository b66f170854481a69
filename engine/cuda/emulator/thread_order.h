// Lets tests run the threads of each block in another order, where kernels are emulated.
#pragma once

#include <cstdint>

namespace sft::cuda::emulator {

enum class ThreadOrder : uint8_t { forward, backward, shuffled };

// Of the launches that follow. Null where kernels are not emulated.
[[gnu::weak]] void set_thread_order(ThreadOrder order);

// For a scope: each time the other of backward and shuffled.
class OtherThreadOrder {
 public:
  OtherThreadOrder() {
    static int turn = 0;
    if (set_thread_order)
      set_thread_order(turn++ % 2 ? ThreadOrder::shuffled : ThreadOrder::backward);
  }
  ~OtherThreadOrder() {
    if (set_thread_order) set_thread_order(ThreadOrder::forward);
  }
  OtherThreadOrder(const OtherThreadOrder&) = delete;
  OtherThreadOrder& operator=(const OtherThreadOrder&) = delete;
};

}  // namespace sft::cuda::emulator
