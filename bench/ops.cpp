#include "bench/ops.h"

#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <optional>
#include <utility>

#include "engine/cpu/parallel.h"

namespace sft {
namespace {

std::string case_name(const OpSpec& spec, const Case& c) {
  return fmt::format("{}[{}x{}{}{}]{}", spec.name, c.B(), c.T(), c.dims.empty() ? "" : "; ",
                     fmt::join(c.dims, " "), c.training ? " train" : "");
}

// What its ops told the profiler.
struct Told {
  double calls = 0, flops = 0, bytes = 0;
};

Told told(const Profile& profile) {
  Told sum;
  for (const Profile::Row& row : profile.rows())
    sum.calls += static_cast<double>(row.calls), sum.flops += row.flops, sum.bytes += row.bytes;
  return sum;
}

// One direction of one case, over repetitions.
struct Direction {
  std::vector<double> seconds = {};  // of a call
  Told work = {};

  KernelRow row(const std::string& name) const {
    return {name, work.calls, spread_of(seconds), work.flops, work.bytes};
  }
};

int64_t last_level_cache() {
  return std::clamp<int64_t>(sysconf(_SC_LEVEL3_CACHE_SIZE), 1 << 22, 1 << 28);
}

// Leaves nothing of what was computed in the caches of the CPU.
void empty_caches() {
  static std::vector<char> others(last_level_cache());
  char* bytes = others.data();
  cpu::parallel_for(std::ssize(others), 1 << 20, [&](int64_t begin, int64_t end) {
    std::memset(bytes + begin, 1 + bytes[begin], end - begin);
  });
}

// Of each of the two arenas of a device.
int64_t device_bytes(Where where) {
  if (where.device == Device::cpu) return 0;
  return std::min(shared_gpu().free_bytes() / 4, int64_t{16} << 30);
}

class CaseBench {
 public:
  CaseBench(const OpSpec& spec, const Case& c, const OpsOptions& options)
      : spec_(spec),
        case_(c),
        device_bytes_(device_bytes(options.where)),
        run_(/*poison=*/false, kSpecSeed, kSpecUpdate, options.where, device_bytes_),
        tape_(run_.ctx) {
    Fill fill(options.seed);
    inputs_ = spec.inputs(c, fill);
    place();
    seed_gradients(fill);
    warm_up(options);
  }

  void repeat() {
    const auto [forward, backward] = region();
    forward_.seconds.push_back(forward);
    if (backward > 0) backward_.seconds.push_back(backward);
    if (yardstick_) yardstick_seconds_.push_back(yardstick_->seconds(calls_));
  }

  // Whether it is there and agrees is said.
  void add_yardstick(const OpsOptions& options) {
    const std::string name = case_name(spec_, case_);
    try {
      yardstick_ = options.yardstick(
          {spec_, case_, inputs_, options.where.compute(), options.rotated_bytes});
      if (!yardstick_) return;
      const double off = disagreement(output(), yardstick_->output());
      const double allowed = allowed_disagreement(options.where.compute());
      const bool agrees = off <= allowed;
      options.say(fmt::format("{}: {} is off by {:.2g} of the norm{}", name, yardstick_->name(),
                              off,
                              agrees ? "" : fmt::format(", more than {:.2g}: not timed", allowed)));
      if (!agrees) yardstick_.reset();
      if (yardstick_) yardstick_->seconds(calls_);  // warm
    } catch (const Error& e) {
      if (e.kind != Kind::resource) throw;
      options.say(fmt::format("{}: no yardstick: {}", name, e.message));
      yardstick_.reset();
    }
  }

  void rows(std::vector<KernelRow>& to) const {
    const std::string name = case_name(spec_, case_);
    to.push_back(forward_.row(name));
    if (yardstick_) to.back().peer = spread_of(yardstick_seconds_).median, to.back().in_turn = true;
    if (!backward_.seconds.empty()) to.push_back(backward_.row(name + " backward"));
  }

 private:
  // One copy of what a call reads.
  struct Inputs {
    std::vector<Tensor> values, gradients;  // inputs, dy
  };

  void place() {
    Inputs& made = copies_.emplace_back();
    for (const Var& v : run_.place(tape_, inputs_)) made.values.push_back(v.value);
    tape_.clear();
    for (size_t i = 0; i < inputs_.size(); ++i)
      if (!inputs_[i].per_frame && !inputs_[i].per_utterance && made.values[i].count())
        run_.prepared.add_parameters(made.values[i].data, made.values[i].bytes());
  }

  // The first one, forward.
  Array output() {
    ScratchScope step(run_.acts), host(run_.host);
    const Array y = OpRun::read(spec_.run(tape_, variables(copies_[0]), case_)[0].value);
    tape_.clear();
    return y;
  }

  // Random dy for every output; the shapes come from a first run.
  void seed_gradients(Fill& fill) {
    std::vector<Tensor> like;
    {
      ScratchScope step(run_.acts), host(run_.host);
      for (const Var& out : spec_.run(tape_, variables(copies_[0]), case_))
        like.push_back(out.value);
      tape_.clear();
    }
    for (const Tensor& out : like) {
      dy_.push_back(fill.normal(out.shape)), dy_types_.push_back(out.dtype);
    }
    place_gradients();
  }

  void place_gradients() {
    for (size_t i = 0; i < dy_.size(); ++i)
      copies_.back().gradients.push_back(run_.write(dy_[i], dy_types_[i]));
  }

  // FLOPs and bytes from a profiled call; on a device also how many calls a region has.
  void warm_up(const OpsOptions& options) {
    const int64_t inputs = run_.acts.used();
    region();
    profile_.emplace(run_.ctx.gpu);
    run_.ctx.profile = &*profile_;
    const auto [forward, backward] = region();
    run_.ctx.profile = nullptr;
    if (!run_.ctx.gpu) return;
    const int64_t call = std::max<int64_t>(run_.acts.peak() - inputs, 1);
    const auto copies =
        std::clamp<int64_t>(options.rotated_bytes / std::max<int64_t>(inputs, 1) + 1, 1, 256);
    for (int64_t k = 1; k < copies; ++k) place(), place_gradients();
    const auto long_enough = static_cast<int64_t>(options.region_seconds / std::max(forward, 1e-7));
    const int64_t room = (device_bytes_ - run_.acts.used()) / call;
    calls_ =
        std::clamp<int64_t>(std::max(copies, long_enough), 1, std::clamp<int64_t>(room, 1, 2048));
    region();
  }

  std::vector<Var> variables(const Inputs& from) {
    std::vector<Var> vars;
    for (size_t i = 0; i < from.values.size(); ++i)
      if (inputs_[i].on_host)
        vars.push_back({on_host(inputs_[i])});
      else
        vars.push_back(inputs_[i].gradient ? tape_.variable(from.values[i]) : Var{from.values[i]});
    return vars;
  }
  // Made anew for each call: run() may make integers of the numbers in place.
  Tensor on_host(const Array& values) {
    const Tensor to = run_.host.tensor(values.shape);
    std::copy(values.data.begin(), values.data.end(), to.f32());
    return to;
  }

  void mark(const std::vector<Var>& outs, const Inputs& inputs) {
    for (size_t i = 0; i < outs.size(); ++i) {
      if (!outs[i].slot) continue;
      if (spec_.loss)
        tape_.loss(outs[i]);
      else
        tape_.seed(outs[i], inputs.gradients[i]);
    }
  }

  // Seconds a call of f, which queues all calls of the region.
  template <class F>
  double timed(Direction& direction, F&& f) {
    if (!run_.ctx.gpu) empty_caches();
    if (profile_) profile_->clear();
    const double seconds = run_.ctx.gpu ? on_device(*run_.ctx.gpu, f) : on_cpu(f);
    if (run_.ctx.profile) direction.work = told(*profile_);
    return seconds / static_cast<double>(calls_);
  }
  template <class F>
  static double on_cpu(F&& f) {
    const Stopwatch watch;
    f();
    return watch.seconds();
  }
  // By events, before the first and behind the last of what f queues.
  template <class F>
  static double on_device(cuda::Runtime& gpu, F&& f) {
    gpu.synchronize();
    const int64_t begin = gpu.moment();
    f();
    const double seconds = gpu.seconds(begin, gpu.moment());
    gpu.forget_moments();
    return seconds;
  }

  // All calls forward, then all backward; 0: there is no backward.
  std::pair<double, double> region() {
    ScratchScope step(run_.acts), host(run_.host);
    std::vector<std::vector<Var>> in(calls_), out(calls_);
    for (size_t i = 0; i < in.size(); ++i) in[i] = variables(copies_[i % copies_.size()]);
    const double forward = timed(forward_, [&] {
      for (size_t i = 0; i < in.size(); ++i) out[i] = spec_.run(tape_, in[i], case_);
    });
    for (size_t i = 0; i < out.size(); ++i) mark(out[i], copies_[i % copies_.size()]);
    double backward = 0;
    if (tape_.size()) backward = timed(backward_, [&] { tape_.backward(); });
    tape_.clear();
    return {forward, backward};
  }

  const OpSpec& spec_;
  const Case& case_;
  int64_t device_bytes_;
  OpRun run_;
  Tape tape_;
  std::optional<Profile> profile_;
  std::vector<Array> inputs_, dy_;
  std::vector<Dtype> dy_types_;
  std::vector<Inputs> copies_;
  int64_t calls_ = 1;  // of a region
  Direction forward_, backward_;
  std::unique_ptr<Yardstick> yardstick_;
  std::vector<double> yardstick_seconds_;
};

[[noreturn]] void bad_shape(const std::string& text) {
  fail(Kind::usage, Hint{"4x250:768,3072 is four utterances of 250 frames, and sizes of the op"},
       "--shape {}: expected FRAMES or FRAMES:DIMS", printable(text));
}

// A whole number of 1 to 2^24 at the front of `rest`, which it is taken off.
int64_t number(std::string_view& rest, const std::string& text) {
  int64_t value = 0;
  const auto [end, error] = std::from_chars(rest.data(), rest.data() + rest.size(), value);
  if (error != std::errc() || value < 1 || value > 1 << 24) bad_shape(text);
  rest.remove_prefix(static_cast<size_t>(end - rest.data()));
  return value;
}

bool accept(std::string_view& rest, char c) {
  if (!rest.starts_with(c)) return false;
  rest.remove_prefix(1);
  return true;
}

Case parse_shape(const std::string& text) {
  Case c{.frames = {}, .bench = true};
  std::string_view rest = text;
  do {
    int64_t count = number(rest, text), frames = count;
    if (accept(rest, 'x'))
      frames = number(rest, text);
    else
      count = 1;
    if (count > 4096) bad_shape(text);
    c.frames.insert(c.frames.end(), static_cast<size_t>(count), static_cast<int32_t>(frames));
  } while (accept(rest, ','));
  if (accept(rest, ':')) do
      c.dims.push_back(number(rest, text));
    while (accept(rest, ','));
  if (!rest.empty() || c.T() > 1 << 24) bad_shape(text);
  return c;
}

// `own`: a bench case of the op.
Case with_shape(const OpSpec& spec, const Case& own, const std::string& shape) {
  Case c = parse_shape(shape);
  c.training = own.training;
  if (c.dims.size() != own.dims.size())
    fail(Kind::usage, "--shape {}: {} has {} sizes beside its frames, as in {}", printable(shape),
         spec.name, own.dims.size(), case_name(spec, own));
  return c;
}

struct Chosen {
  const OpSpec* spec;
  Case bench;
};

std::vector<Chosen> choose(const OpsOptions& options) {
  const std::string& op = options.op;
  // A shape fits one op, so a whole name then means no longer ones.
  const bool one = !options.shape.empty() &&
                   std::ranges::any_of(op_specs(), [&](const OpSpec& s) { return s.name == op; });
  std::vector<Chosen> chosen;
  std::vector<std::string_view> names;
  for (const OpSpec& spec : op_specs()) {
    if (options.where.device == Device::cuda && !spec.cuda) continue;
    bool benched = false;
    for (const Case& c : spec.cases) {
      if (!c.bench) continue;
      const bool first = !std::exchange(benched, true);
      if (one ? spec.name != op : !spec.name.starts_with(op)) continue;
      if (options.shape.empty())
        chosen.push_back({&spec, c});
      else if (first)
        chosen.push_back({&spec, with_shape(spec, c, options.shape)});
    }
    if (benched) names.push_back(spec.name);
  }
  if (chosen.empty()) {
    std::sort(names.begin(), names.end());
    fail(Kind::usage, "--op {}: no op has such a name (expected {})", printable(op),
         fmt::join(names, ", "));
  }
  std::stable_sort(chosen.begin(), chosen.end(),
                   [](const Chosen& a, const Chosen& b) { return a.spec->name < b.spec->name; });
  return chosen;
}

// An op's own checks say what is wrong with a shape of the user's.
std::unique_ptr<CaseBench> open_case(const Chosen& chosen, const OpsOptions& options) {
  try {
    return std::make_unique<CaseBench>(*chosen.spec, chosen.bench, options);
  } catch (const Error& e) {
    if (options.shape.empty() || e.kind == Kind::resource) throw;
    fail(Kind::usage, "--shape {}: {}", options.shape, e.message);
  }
}

}  // namespace

std::vector<const OpSpec*> chosen_ops(const OpsOptions& options) {
  std::vector<const OpSpec*> specs;
  for (const Chosen& chosen : choose(options))
    if (specs.empty() || specs.back() != chosen.spec) specs.push_back(chosen.spec);
  return specs;
}

std::vector<KernelRow> bench_ops(const OpsOptions& options,
                                 const std::function<void(int64_t done, int64_t total)>& progress) {
  std::vector<KernelRow> rows;
  const std::vector<Chosen> chosen = choose(options);
  options.between();
  for (size_t i = 0; i < chosen.size(); ++i) {
    const std::unique_ptr<CaseBench> bench = open_case(chosen[i], options);
    if (options.yardstick) bench->add_yardstick(options);
    for (int r = 0; r < options.repeats; ++r) bench->repeat();
    bench->rows(rows);
    options.between();
    progress(static_cast<int64_t>(i + 1), static_cast<int64_t>(chosen.size()));
  }
  return rows;
}

}  // namespace sft
