// Learning-rate factors by update (speech-ft: Lin et al. 2025, arXiv:2502.12672; the tri-stage
// schedule of Baevski et al. 2020). u is 0-based, N updates in all.
#pragma once

#include <cstdint>
#include <string>

namespace sft {

struct Schedule {
  std::string kind = "tri_stage";   // tri_stage, linear, constant
  int64_t steps = 0;                // N
  double warmup = 0.1, hold = 0.4;  // shares of N, rounded down

  int64_t warmup_end() const;
  int64_t hold_end() const;  // tri_stage: the ramp down begins
  // u / W, then 1, then (N - u) / (N - H); linear: no hold; constant: 1 after the ramp.
  double factor(int64_t u) const;
  const char* phase(int64_t u) const;  // warmup, hold, decay
};

// F = floor(beta N): updates u < F train the head alone.
int64_t head_only_steps(int64_t steps, double head_only);

}  // namespace sft
