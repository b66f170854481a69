#include "bench/spread.h"

#include <algorithm>

namespace sft {

Spread spread_of(std::vector<double> values) {
  if (values.empty()) return {};
  std::sort(values.begin(), values.end());
  const size_t n = values.size();
  return {(values[(n - 1) / 2] + values[n / 2]) / 2, values.front(), values.back(),
          static_cast<int>(n)};
}

}  // namespace sft
