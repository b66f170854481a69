#include "engine/cuda/runtime.h"

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <set>

#include "engine/cuda/gemm_choices.h"
#include "engine/cuda/launch_log.h"
#include "engine/cuda/step_graphs.h"
#include "engine/cuda/step_lists.h"

namespace sft::cuda {
namespace {

constexpr int64_t kLateSlots = 64;  // of a step
constexpr int64_t kChunk = 16 << 20;
constexpr size_t kLstmPlans = 1 << 12;  // kept; a training set has about as many groups

// By shape and lengths, which are looked up where they lie.
struct PlanOrder {
  using is_transparent = void;
  using Key = std::pair<LstmShape, std::span<const int32_t>>;
  static Key key(const std::shared_ptr<const LstmPlan>& plan) {
    return {plan->shape, plan->starts};
  }
  static Key key(const Key& key) { return key; }
  bool operator()(const auto& a, const auto& b) const {
    const Key x = key(a), y = key(b);
    if (x.first != y.first) return x.first < y.first;
    return std::ranges::lexicographical_compare(x.second, y.second);
  }
};

// Where uploads of a step wait: pinned memory, and as much of the device's, to which they are sent
// while the step before computes.
class Staging {
 public:
  explicit Staging(Driver& driver) : driver_(driver) {}
  // Nothing reads any more what was kept.
  void clear() {
    newest_ = 0;
    for (Chunk& chunk : chunks_) chunk.used = chunk.sent = 0;
  }
  // Where on the device it will lie.
  const void* keep(const void* from, int64_t bytes) {
    while (newest_ < chunks_.size() && !chunks_[newest_].has_room(bytes)) ++newest_;
    if (newest_ == chunks_.size()) {
      const int64_t size = std::max(bytes, kChunk);
      chunks_.push_back(
          {DriverMemory::pinned(driver_, size), DriverMemory::of_device(driver_, size)});
    }
    Chunk& chunk = chunks_[newest_];
    std::memcpy(chunk.host.bytes() + chunk.used, from, bytes);
    const void* there = chunk.device.bytes() + chunk.used;
    chunk.used += (bytes + 63) / 64 * 64;
    return there;
  }
  // What was kept since the last call.
  void send() {
    bool sent = false;
    for (Chunk& chunk : chunks_) {
      const int64_t end = std::min(chunk.used, chunk.host.size()), begin = chunk.sent;
      if (end <= begin) continue;
      driver_.send(chunk.device.bytes() + begin, chunk.host.bytes() + begin, end - begin);
      chunk.sent = end, sent = true;
    }
    if (sent) driver_.receive();
  }

 private:
  struct Chunk {
    DriverMemory host, device;
    int64_t used = 0, sent = 0;  // bytes

    bool has_room(int64_t bytes) const { return used + bytes <= host.size(); }
  };
  Driver& driver_;
  std::deque<Chunk> chunks_;
  size_t newest_ = 0;
};

}  // namespace

bool synchronous() {
  const char* sync = std::getenv("SFT_SYNC");
  return sync && sync[0] == '1';
}

struct Runtime::Steps {
  explicit Steps(Driver& driver)
      : driver(driver),
        graphs(driver),
        lists(driver),
        staging{Staging(driver), Staging(driver)},
        late_values(DriverMemory::of_device(driver, kLateSlots * Late::kBytes)),
        late_arrivals(DriverMemory::pinned(driver, Driver::kEvents * kLateSlots * Late::kBytes)) {}

  char* arrivals(int64_t step) const {
    return late_arrivals.bytes() + step % Driver::kEvents * kLateSlots * Late::kBytes;
  }
  void mark(int64_t step) { driver.mark(static_cast<int>(step % Driver::kEvents)); }
  void wait_for(int64_t step) { driver.wait_for(static_cast<int>(step % Driver::kEvents)); }
  // What commands of the open step will read, on its way.
  void send() {
    lists.send();
    staging[opened % 2].send();
  }
  // Now, or when the step ends.
  template <class C>
  void give(const C& command) {
    if (open)
      commands.add(command);
    else
      driver.run(command);
  }

  Driver& driver;
  const bool sync = synchronous();
  bool open = false;   // a step is
  bool whole = false;  // ... and nothing of it has run yet
  int64_t newest = 0;  // step; a value that is late outside of steps counts as one
  int64_t opened = 0;  // steps: the memory that lists and uploads wait in is used in turn
  std::array<int64_t, 2> last{};  // the newest step that used it
  Commands commands;
  StepGraphs graphs;
  StepLists lists;
  std::array<Staging, 2> staging;
  DriverMemory late_values, late_arrivals;
  int64_t late = 0;  // values of the open step
  std::set<std::shared_ptr<const LstmPlan>, PlanOrder> lstm_plans;
  LstmChoices lstm_choices;
  DriverMemory eager_staging;
  int64_t eager_staged = 0;  // bytes in use, since the stream was last waited for
};

void device_lost(std::string_view where, std::string_view why) {
  fail(Kind::resource,
       Hint{"a run goes on from its last checkpoint with --resume; SFT_SYNC=1 names the kernel"},
       "cuda: {}: {}: the device is lost", where, why);
}

void Late::read(void* to, size_t bytes) const {
  if (from_)
    from_->read(*this, to, bytes);
  else
    std::memcpy(to, value_.data(), bytes);
}

std::string StepCounts::text() const {
  std::string out = fmt::format("{} captured, {} of {} steps replayed", captured, replayed, steps);
  if (!refused.empty()) out += fmt::format("; none since the device refused one: {}", refused);
  return out;
}

Runtime::Runtime(std::unique_ptr<Driver> driver)
    : driver_(std::move(driver)), steps_(std::make_unique<Steps>(*driver_)) {}

Runtime::~Runtime() = default;

std::string Runtime::name() const { return driver_->name(); }
int64_t Runtime::free_bytes() const { return driver_->free_bytes(); }
int Runtime::multiprocessors() const { return driver_->multiprocessors(); }
void* Runtime::allocate(int64_t bytes) { return driver_->allocate(bytes); }
void Runtime::release(void* memory) noexcept { driver_->release(memory); }

int64_t Runtime::moment() { return driver_->moment(); }
double Runtime::seconds(int64_t from, int64_t to) { return driver_->seconds(from, to); }
void Runtime::forget_moments() { driver_->forget_moments(); }
std::string Runtime::kernel_name(const void* function) const {
  return driver_->kernel_name(function);
}

GemmChoices Runtime::gemm_choices() const {
  GemmChoices choices = driver_->gemm_choices();
  const LstmChoices& lstm = steps_->lstm_choices;
  choices.lstms = lstm.recorded;
  for (const auto& [shape, choice] : lstm.made)
    choices.lstms[shape] = choice.library ? driver_->lstm_library() : kOwnKernels;
  return choices;
}
int64_t Runtime::use_gemm_choices(const GemmChoices& recorded) {
  for (const auto& [shape, by] : recorded.lstms) {
    steps_->lstm_choices.made.erase(shape);
    steps_->lstm_choices.recorded[shape] = by;
  }
  return driver_->use_gemm_choices(recorded);
}
LstmChoices& Runtime::lstm_choices() { return steps_->lstm_choices; }

std::string Runtime::lstm_library() { return driver_->lstm_library(); }

std::shared_ptr<const LstmPlan> Runtime::lstm_plan(const LstmShape& shape,
                                                   std::span<const int32_t> starts) {
  auto& plans = steps_->lstm_plans;
  if (const auto found = plans.find(PlanOrder::Key{shape, starts}); found != plans.end())
    return *found;
  if (plans.size() >= kLstmPlans) plans.clear();  // graphs keep theirs
  return *plans.insert(driver_->lstm_plan(shape, starts)).first;
}

// ---- commands

void launch_kernel(StreamHandle stream, const KernelCall& call) {
  static_cast<Runtime*>(stream)->launch(call);
}

void Runtime::launch(const KernelCall& call) {
  const LoggedLaunch logged(call.function, call.file, call.line);
  steps_->give(call);
}

void Runtime::gemm(const Gemm& g) {
  if (g.M == 0 || g.N == 0) return;
  const LoggedLaunch logged(nullptr, "product", 0);
  steps_->give(g);
}

void Runtime::lstm(const LstmPass& pass) {
  const LoggedLaunch logged(nullptr, pass.dy ? "lstm.backward" : "lstm", 0);
  steps_->give(pass);
}

void Runtime::fill(void* to, uint8_t byte, int64_t bytes) {
  if (bytes > 0) steps_->give(Fill{to, byte, bytes});
}

void Runtime::copy(void* to, const void* from, int64_t bytes) {
  if (bytes > 0) steps_->give(Copy{to, from, bytes});
}

void Runtime::upload(void* to, const void* from, int64_t bytes) {
  Steps& s = *steps_;
  if (s.open) {
    if (bytes > 0) s.give(Upload{to, s.staging[s.opened % 2].keep(from, bytes), bytes});
    return;
  }
  if (!s.eager_staging.bytes()) s.eager_staging = DriverMemory::pinned(*driver_, kChunk);
  const auto *source = static_cast<const char*>(from), *end = source + bytes;
  for (auto* target = static_cast<char*>(to); source < end;) {
    if (s.eager_staged == kChunk) synchronize();
    const int64_t piece = std::min<int64_t>(end - source, kChunk - s.eager_staged);
    char* staged = s.eager_staging.bytes() + s.eager_staged;
    std::memcpy(staged, source, piece);
    driver_->run(Upload{target, staged, piece});
    s.eager_staged += piece, source += piece, target += piece;
  }
}

const void* Runtime::list(void* to, const void* from, int64_t bytes) {
  if (steps_->open)
    if (const void* listed = steps_->lists.put(from, bytes)) return listed;
  upload(to, from, bytes);
  return to;
}

void Runtime::download(void* to, const void* from, int64_t bytes) {
  CHECK(!steps_->open || steps_->commands.empty(), "download inside a step of a device");
  driver_->download(to, from, bytes);
  driver_->wait();
}

void Runtime::synchronize() {
  CHECK(!steps_->open || steps_->commands.empty(), "synchronize inside a step of a device");
  driver_->wait();
  steps_->eager_staged = 0;
}

// ---- late values: device memory of the step -> pinned memory, all at its end

Late Runtime::late(const void* from, int64_t bytes) {
  Steps& s = *steps_;
  CHECK(bytes <= Late::kBytes, "late: {} bytes", bytes);
  if (s.open) {
    CHECK(s.late < kLateSlots, "late: more than {} values in a step", kLateSlots);
    copy(s.late_values.bytes() + s.late * Late::kBytes, from, bytes);
    return {this, s.newest, s.late++};
  }
  ++s.newest;
  driver_->download(s.arrivals(s.newest), from, bytes);
  s.mark(s.newest);
  return {this, s.newest, 0};
}

void Runtime::read(const Late& late, void* to, size_t bytes) {
  Steps& s = *steps_;
  CHECK(s.newest - late.step_ < Driver::kEvents, "late: read {} steps afterwards",
        s.newest - late.step_);
  CHECK(!s.open || late.step_ != s.newest, "late: read before the end of its step");
  s.wait_for(late.step_);
  std::memcpy(to, s.arrivals(late.step_) + late.slot_ * Late::kBytes, bytes);
}

// ---- steps

void Runtime::begin_step() {
  Steps& s = *steps_;
  CHECK(!s.open, "a step of a device inside a step");
  if (s.sync) return;
  const size_t turn = ++s.opened % 2;
  if (s.last[turn]) s.wait_for(s.last[turn]);  // or for a younger one, which has its event now
  s.last[turn] = ++s.newest;
  s.staging[turn].clear();
  s.lists.begin_step();
  s.open = s.whole = true;
  s.late = 0;
}

void Runtime::end_step() {
  Steps& s = *steps_;
  if (!s.open) return;
  s.send();
  s.graphs.run(s.commands, s.whole);
  if (s.late) driver_->download(s.arrivals(s.newest), s.late_values.bytes(), s.late * Late::kBytes);
  s.mark(s.newest);
  s.lists.end_step();
  drop_step();
}

void Runtime::drop_step() noexcept {
  steps_->commands.clear();
  steps_->open = false;
}

void Runtime::flush() {
  Steps& s = *steps_;
  if (!s.open) return;
  s.whole = false;
  s.send();
  s.graphs.run_each(s.commands);
  s.commands.clear();
  driver_->wait();
}

bool Runtime::in_step() const { return steps_->open; }

const StepCounts& Runtime::step_counts() const { return steps_->graphs.counts(); }

}  // namespace sft::cuda
