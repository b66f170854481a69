// Lets tests spoil the library for LSTM layers, where kernels are emulated.
#pragma once

#include <cstdint>

namespace sft::cuda::emulator {

enum class LstmFault : uint8_t {
  none,
  absent,    // there is no library
  failing,   // its calls return an error
  wrong,     // a number is wrong
  tf32,      // x is rounded to 10 bits of mantissa
  unsteady,  // a number has other bits each time, as near as they can be
};

// From now on. Null where kernels are not emulated.
[[gnu::weak]] void lstm_library_has(LstmFault fault);

}  // namespace sft::cuda::emulator
