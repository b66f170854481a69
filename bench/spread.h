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

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

}  // namespace sft
