// Where the time of a step goes: per op, calls, seconds, bytes and FLOPs; on a device also per
// kernel.
//
// On a device an op is timed by events on the stream (so not inside its steps), and nothing is
// waited for: from when all before it is done to when all that it launched is. Where the host
// launches too slowly, the device's waiting is part of it.
#pragma once

#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace sft::cuda {
class Runtime;
}

namespace sft {

class Profile {
 public:
  // gpu: of the context; kernels: every launch is timed too, which makes a step longer.
  explicit Profile(cuda::Runtime* gpu = nullptr, bool kernels = false);
  ~Profile();

  struct Row {
    std::string_view name;  // of a string literal
    int64_t calls = 0;
    double seconds = 0, flops = 0, bytes = 0;
  };
  struct Kernel {
    std::string_view op;
    std::string name;
    int64_t calls = 0;
    double seconds = 0;
  };
  // Waits for the device, and adds up what was timed on it; between ops.
  void settle();
  // As they were when it last settled.
  const std::vector<Row>& rows() const { return rows_; }
  std::vector<Kernel> kernels() const;
  void clear();

 private:
  friend class ProfileScope;
  class Launches;
  struct Timed {
    size_t row;
    int64_t begin, end;  // moments of the device
  };
  size_t index(std::string_view name);

  cuda::Runtime* gpu_;
  std::unique_ptr<Launches> launches_;  // null: kernels are not timed
  std::vector<Row> rows_;
  std::vector<Timed> timed_;
};

// Times one op's scope. flops and bytes: the algorithm's (each input and output once).
class ProfileScope {
 public:
  ProfileScope(Profile* profile, std::string_view name, double flops, double bytes)
      : profile_(profile), name_(name), flops_(flops), bytes_(bytes) {
    if (profile_) begin();
  }
  ~ProfileScope() noexcept(false) {  // the device may be lost
    if (profile_) end();
  }
  ProfileScope(const ProfileScope&) = delete;
  ProfileScope& operator=(const ProfileScope&) = delete;

 private:
  void begin();
  void end();

  Profile* profile_;
  std::string_view name_;
  double flops_, bytes_;
  int exceptions_ = std::uncaught_exceptions();
  std::chrono::steady_clock::time_point start_;
  int64_t moment_ = 0;
};

}  // namespace sft
