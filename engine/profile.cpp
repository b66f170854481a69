#include "engine/profile.h"

#include "engine/cuda/launch_log.h"
#include "engine/cuda/runtime.h"

namespace sft {

// Of the ops of a profile, in the order in which they were first met.
class Profile::Launches final : public cuda::LaunchLog {
 public:
  explicit Launches(cuda::Runtime& gpu) : gpu_(gpu) {}

  void begin(const void* kernel, const char* what, int line) override {
    timed_.push_back({index({op_, kernel, what, line}), gpu_.moment(), 0});
  }
  void end() override { timed_.back().end = gpu_.moment(); }

  void listen(std::string_view op) { op_ = op, cuda::launch_log = this; }
  void settle() {
    for (const Timed& t : timed_) {
      ++sums_[t.row].calls;
      sums_[t.row].seconds += gpu_.seconds(t.begin, t.end);
    }
    timed_.clear();
  }
  void clear() { sums_.clear(), timed_.clear(); }
  std::vector<Kernel> kernels() const {
    std::vector<Kernel> kernels;
    for (const Sum& sum : sums_)
      kernels.push_back({sum.id.op, name(sum.id), sum.calls, sum.seconds});
    return kernels;
  }

 private:
  struct Id {
    std::string_view op;
    const void* kernel;
    const char* what;
    int line;
    bool operator==(const Id&) const = default;
  };
  struct Sum {
    Id id;
    int64_t calls = 0;
    double seconds = 0;
  };

  size_t index(const Id& id) {
    for (size_t i = 0; i < sums_.size(); ++i)
      if (sums_[i].id == id) return i;
    sums_.push_back({id});
    return sums_.size() - 1;
  }
  // "layer_norm_forward_kernel<float, 4>"; where kernels have no names, "layer_norm.cu:88".
  std::string name(const Id& id) const {
    if (!id.kernel) return id.what;
    const std::string known = gpu_.kernel_name(id.kernel);
    if (!known.empty()) return known;
    const std::string_view path = id.what;
    return fmt::format("{}:{}", path.substr(path.rfind('/') + 1), id.line);
  }

  cuda::Runtime& gpu_;
  std::string_view op_;
  std::vector<Sum> sums_;
  std::vector<Timed> timed_;
};

Profile::Profile(cuda::Runtime* gpu, bool kernels) : gpu_(gpu) {
  if (gpu && kernels) launches_ = std::make_unique<Launches>(*gpu);
}
Profile::~Profile() { clear(); }

size_t Profile::index(std::string_view name) {
  for (size_t i = 0; i < rows_.size(); ++i)
    if (rows_[i].name == name) return i;
  rows_.push_back({.name = name});
  return rows_.size() - 1;
}

void Profile::settle() {
  if (!gpu_) return;
  for (const Timed& t : timed_) rows_[t.row].seconds += gpu_->seconds(t.begin, t.end);
  timed_.clear();
  if (launches_) launches_->settle();
  gpu_->forget_moments();
}

std::vector<Profile::Kernel> Profile::kernels() const {
  return launches_ ? launches_->kernels() : std::vector<Kernel>();
}

void Profile::clear() {
  rows_.clear(), timed_.clear();
  if (launches_) launches_->clear();
  if (gpu_) gpu_->forget_moments();
}

void ProfileScope::begin() {
  if (!profile_->gpu_) {
    start_ = std::chrono::steady_clock::now();
    return;
  }
  if (profile_->launches_) profile_->launches_->listen(name_);
  moment_ = profile_->gpu_->moment();
}

void ProfileScope::end() {
  cuda::launch_log = nullptr;
  if (std::uncaught_exceptions() > exceptions_) return;
  const size_t i = profile_->index(name_);
  Profile::Row& row = profile_->rows_[i];
  ++row.calls;
  row.flops += flops_, row.bytes += bytes_;
  if (profile_->gpu_) {
    profile_->timed_.push_back({i, moment_, profile_->gpu_->moment()});
  } else {
    row.seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }
}

}  // namespace sft
