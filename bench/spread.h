// What repetitions of one measurement gave.
#pragma once

#include <chrono>
#include <vector>

namespace sft {

struct Spread {
  double median = 0, min = 0, max = 0;
  int n = 0;
};

Spread spread_of(std::vector<double> values);

// Processor time of all threads of this process so far. Where others compute too, it says what a
// measurement would have been.
double process_cpu_seconds();

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace sft
