// Where the time of a step goes: per op, calls, seconds, bytes and FLOPs.
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <string_view>
#include <vector>

namespace sft::cuda {
class Runtime;
}

namespace sft {

class Profile {
 public:
  // gpu: an op's time runs from one synchronisation of it to the next; so not inside its steps.
  explicit Profile(cuda::Runtime* gpu = nullptr) : gpu_(gpu) {}

  struct Row {
    std::string_view name;  // of a string literal
    int64_t calls = 0;
    double seconds = 0, flops = 0, bytes = 0;
  };
  Row& row(std::string_view name);
  const std::vector<Row>& rows() const { return rows_; }
  void clear() { rows_.clear(); }
  void wait() const;

 private:
  cuda::Runtime* gpu_;
  std::vector<Row> rows_;
};

// Times one op's scope. flops and bytes: the algorithm's (each input and output once).
class ProfileScope {
 public:
  ProfileScope(Profile* profile, std::string_view name, double flops, double bytes)
      : profile_(profile), name_(name), flops_(flops), bytes_(bytes) {
    if (!profile_) return;
    profile_->wait();
    start_ = std::chrono::steady_clock::now();
  }
  ~ProfileScope() noexcept(false);  // the device it waits for may be lost
  ProfileScope(const ProfileScope&) = delete;
  ProfileScope& operator=(const ProfileScope&) = delete;

 private:
  Profile* profile_;
  std::string_view name_;
  double flops_, bytes_;
  int exceptions_ = std::uncaught_exceptions();
  std::chrono::steady_clock::time_point start_;
};

}  // namespace sft
