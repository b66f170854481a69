// Every op at its bench cases: the specs of tests/ops/ run forward and backward. FLOPs and bytes
// are those that the op tells the profiler.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "bench/report.h"

namespace sft {

struct OpsOptions {
  std::string op;  // ops whose name begins with this; empty: all
  int repeats = 10;
  uint64_t seed = 0;
};

// A row a case and direction. Kind::usage if no op has such a name. Weights are parameters, so that
// packing them is not timed; inputs lie where the step before left them, as in a model.
std::vector<KernelRow> bench_ops(const OpsOptions& options,
                                 const std::function<void(int64_t done, int64_t total)>& progress);

}  // namespace sft
