#include "engine/profile.h"

#include "engine/cuda/runtime.h"

namespace sft {

Profile::Row& Profile::row(std::string_view name) {
  for (Row& row : rows_)
    if (row.name == name) return row;
  return rows_.emplace_back(Row{.name = name});
}

void Profile::wait() const {
  if (gpu_) gpu_->synchronize();
}

ProfileScope::~ProfileScope() noexcept(false) {
  if (!profile_ || std::uncaught_exceptions() > exceptions_) return;
  profile_->wait();
  Profile::Row& row = profile_->row(name_);
  ++row.calls;
  row.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  row.flops += flops_;
  row.bytes += bytes_;
}

}  // namespace sft
