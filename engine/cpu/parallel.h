// Parallel loops over OpenMP's threads, in chunks whose borders do not depend on how many there
// are: what a chunk sums is the same with one thread and with sixty-four.
#pragma once

#include <algorithm>
#include <cstdint>

namespace sft::cpu {

// f(begin, end) for the chunks [0, grain), [grain, 2 grain), ... of [0, n).
template <class F>
void parallel_for(int64_t n, int64_t grain, F&& f) {
  const int64_t chunks = (n + grain - 1) / grain;
  if (chunks <= 1) {
    if (n > 0) f(int64_t{0}, n);
    return;
  }
#pragma omp parallel for schedule(static)
  for (int64_t chunk = 0; chunk < chunks; ++chunk)
    f(chunk * grain, std::min(n, (chunk + 1) * grain));
}

}  // namespace sft::cpu
