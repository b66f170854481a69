// Who is told of every launch: a profile that times each kernel (engine/profile.h), for the length
// of an op. One at a time.
#pragma once

namespace sft::cuda {

class LaunchLog {
 public:
  virtual ~LaunchLog() = default;
  // Around what is put on the stream. kernel: the function, or null for a library's product or
  // convolution, which `what` names; else `what` and `line` are the place of the launch.
  virtual void begin(const void* kernel, const char* what, int line) = 0;
  virtual void end() = 0;
};

inline LaunchLog* launch_log = nullptr;  // null: nobody

class LoggedLaunch {
 public:
  LoggedLaunch(const void* kernel, const char* what, int line) : log_(launch_log) {
    if (log_) log_->begin(kernel, what, line);
  }
  ~LoggedLaunch() {
    if (log_) log_->end();
  }
  LoggedLaunch(const LoggedLaunch&) = delete;

 private:
  LaunchLog* log_;
};

}  // namespace sft::cuda
