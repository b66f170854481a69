// What this machine can do at most, measured here and now: every share of a roofline is a share of
// these. The best of a few short runs, since a ceiling is what nothing disturbed.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "bench/spread.h"
#include "engine/cuda/runtime.h"
#include "engine/math.h"

namespace sft {

// Of a device, through its Runtime.
struct DeviceCeilings {
  std::string name;
  Math math = Math::bf16;    // of the run
  double bf16 = 0, f32 = 0;  // FLOP/s of a large product; sums are f32
  double copy = 0;           // bytes/s within its memory, what is read and what is written counted
};

// Rates of all threads at moments of a run, before, between and after what was timed. On a machine
// whose processors others use too they say what could be had then.
struct Moments {
  Spread fma, tile;  // FLOP/s of fused multiply-adds in registers, and of Ceilings::tile()
  Spread tile_busy;  // of the tile, per second of processor time in place of the clock's
};

struct Ceilings {
  double fma_one = 0;       // fp32 FLOP/s of the instruction set in use, one thread
  double fma_all = 0;       // ... and all threads of the pool
  double read = 0;          // bytes/s from memory, all threads
  double copy = 0;          // bytes/s, what is read and what is written counted, all threads
  Math math = Math::exact;  // of the run
  double narrow_all = 0;    // OP/s of its 16-bit products, all threads; 0: of exact
  double f32_tile_all =
      0;  // FLOP/s of a tile of f32 products that stays in the L1 cache, all threads
  Moments moments = {};
  std::optional<DeviceCeilings> device = {};

  // What the kernels of this run are measured against: the device's, if there is one.
  double arithmetic() const;
  double bandwidth() const;
  // Of a tile of this run's products, on the CPU.
  double tile() const { return narrow_all > 0 ? narrow_all : f32_tile_all; }
};

// Collects them; the best of them all replaces a ceiling below it.
class MomentProbe {
 public:
  explicit MomentProbe(Ceilings& of) : ceilings_(of) {}
  void operator()();  // 40 ms
  void settle();      // into the ceilings

 private:
  Ceilings& ceilings_;
  std::vector<double> fma_, tile_, tile_busy_;
};

// About a second. Buffers of 256 MiB in all; a cache that holds them gives its own rate.
Ceilings measure_ceilings(Math math);

struct DeviceSizes {
  int64_t product = 8192;           // rows and columns of each matrix
  int64_t copy = int64_t{1} << 30;  // bytes
  double seconds = 0.25;            // for each rate
};
// About a second. Numbers are random: a processor that only sees zeros may run faster.
DeviceCeilings measure_device(cuda::Runtime& gpu, Math math, const DeviceSizes& sizes = {});

}  // namespace sft
