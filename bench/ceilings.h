// What this machine can do at most, measured here and now: every share of a roofline is a share of
// these. The best of a few short runs, since a ceiling is what nothing disturbed.
#pragma once

namespace sft {

struct Ceilings {
  double fma_one = 0;  // fp32 FLOP/s of the instruction set in use, one thread
  double fma_all = 0;  // ... and all threads of the pool
  double read = 0;     // bytes/s from memory, all threads
  double copy = 0;     // bytes/s, what is read and what is written counted, all threads
};

// About a second. Buffers of 256 MiB in all; a cache that holds them gives its own rate.
Ceilings measure_ceilings();

}  // namespace sft
