// Every op at its bench cases: the specs of tests/ops/ run forward and backward. FLOPs and bytes
// are those that the op tells the profiler.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "bench/report.h"
#include "bench/yardstick.h"
#include "tests/op_spec.h"

namespace sft {

struct OpsOptions {
  std::string op;  // ops whose name begins with this; empty: all
  // In place of their own cases: FRAMES[:DIMS], "250,31:768,3072", "4x250" for four of 250; dims as
  // the op's bench cases have them.
  std::string shape = {};
  int repeats = 10;
  uint64_t seed = 0;
  Where where = {};
  // On a device a timed region is as many calls as take this long, over copies of the inputs that
  // together exceed any second-level cache, twice over.
  double region_seconds = 5e-3;
  int64_t rotated_bytes = int64_t{192} << 20;
  // On a device: a library's way to do the same, timed in turn with ours; it becomes the row's
  // peer.
  MakeYardstick yardstick = {};
  std::function<void(const std::string&)> say = [](const std::string&) {};
  std::function<void()> between = [] {};  // before the first repetition, and behind each case
};

// Those that bench_ops would time, in order of their names.
std::vector<const OpSpec*> chosen_ops(const OpsOptions& options);

// A row a case and direction; on a device only of ops with CUDA kernels. Kind::usage if no op has
// such a name, or it does not take such a shape. Weights are parameters, so that packing them is
// not timed. No cache holds the inputs: on the CPU it is emptied before each call.
std::vector<KernelRow> bench_ops(const OpsOptions& options,
                                 const std::function<void(int64_t done, int64_t total)>& progress);

}  // namespace sft
