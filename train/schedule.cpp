#include "train/schedule.h"

#include <algorithm>
#include <cmath>

namespace sft {
namespace {

// floor(share * N) for shares such as 0.1 that binary numbers only come near.
int64_t part(double share, int64_t steps) {
  return static_cast<int64_t>(std::floor(share * static_cast<double>(steps) + 1e-9));
}

}  // namespace

int64_t Schedule::warmup_end() const { return part(warmup, steps); }

int64_t Schedule::hold_end() const {
  return kind == "tri_stage" ? warmup_end() + part(hold, steps) : warmup_end();
}

double Schedule::factor(int64_t u) const {
  const int64_t W = warmup_end(), H = hold_end();
  if (u < W) return static_cast<double>(u) / static_cast<double>(W);
  if (kind == "constant" || u < H) return 1;
  return std::max(
      0.0, static_cast<double>(steps - u) / static_cast<double>(std::max<int64_t>(1, steps - H)));
}

const char* Schedule::phase(int64_t u) const {
  if (u < warmup_end()) return "warmup";
  return kind == "constant" || u < hold_end() ? "hold" : "decay";
}

int64_t head_only_steps(int64_t steps, double head_only) { return part(head_only, steps); }

}  // namespace sft
