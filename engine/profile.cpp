#include "engine/profile.h"

#include <ctime>

namespace sft {

double process_cpu_seconds() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

Profile::Row& Profile::row(std::string_view name) {
  for (Row& row : rows_)
    if (row.name == name) return row;
  return rows_.emplace_back(Row{.name = name});
}

double Profile::seconds() const {
  double sum = 0;
  for (const Row& row : rows_) sum += row.seconds;
  return sum;
}

ProfileScope::~ProfileScope() {
  if (!profile_) return;
  Profile::Row& row = profile_->row(name_);
  ++row.calls;
  row.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  row.cpu_seconds += process_cpu_seconds() - cpu_start_;
  row.flops += flops_;
  row.bytes += bytes_;
}

}  // namespace sft
