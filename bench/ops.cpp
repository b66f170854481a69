#include "bench/ops.h"

#include <algorithm>

#include "tests/op_spec.h"

namespace sft {
namespace {

constexpr int kWarmUps = 2;

std::string case_name(const OpSpec& spec, const Case& c) {
  return fmt::format("{}[{}x{}{}{}]{}", spec.name, c.B(), c.T(), c.dims.empty() ? "" : "; ",
                     fmt::join(c.dims, " "), c.training ? " train" : "");
}

// One direction of one case, over repetitions.
struct Direction {
  std::vector<double> seconds;
  double calls = 0, flops = 0, bytes = 0;

  void add(double elapsed, Profile& profile) {
    seconds.push_back(elapsed);
    calls = flops = bytes = 0;
    for (const Profile::Row& row : profile.rows())
      calls += static_cast<double>(row.calls), flops += row.flops, bytes += row.bytes;
    profile.clear();
  }
  KernelRow row(const std::string& name) const {
    return {name, calls, spread_of(seconds), flops, bytes};
  }
};

class CaseBench {
 public:
  CaseBench(const OpSpec& spec, const Case& c, uint64_t seed)
      : spec_(spec), case_(c), run_(/*poison=*/false, kSpecSeed, kSpecUpdate), tape_(run_.ctx) {
    Fill fill(seed);
    inputs_ = spec.inputs(c, fill);
    place();
    seed_gradients(fill);
    run_.ctx.profile = &profile_;
  }

  void repeat(bool timed) {
    ScratchScope step(run_.acts);
    const std::vector<Var> vars = variables();
    profile_.clear();
    const Stopwatch forward;
    const std::vector<Var> outs = spec_.run(tape_, vars, case_);
    if (timed) forward_.add(forward.seconds(), profile_);
    mark(outs);
    profile_.clear();
    const Stopwatch backward;
    tape_.backward();
    if (timed && tape_.size()) backward_.add(backward.seconds(), profile_);
    tape_.clear();
  }

  void rows(std::vector<KernelRow>& to) const {
    const std::string name = case_name(spec_, case_);
    to.push_back(forward_.row(name));
    if (!backward_.seconds.empty()) to.push_back(backward_.row(name + " backward"));
  }

 private:
  void place() {
    for (const Var& v : run_.place(tape_, inputs_)) values_.push_back(v.value);
    for (size_t i = 0; i < inputs_.size(); ++i)
      if (!inputs_[i].per_frame && !inputs_[i].per_utterance && values_[i].count())
        run_.prepared.add_parameters(values_[i].data, values_[i].bytes());
  }

  // Random dy for every output; the shapes come from a first run.
  void seed_gradients(Fill& fill) {
    std::vector<Shape> shapes;
    {
      ScratchScope step(run_.acts);
      for (const Var& out : spec_.run(tape_, variables(), case_)) shapes.push_back(out.shape());
      tape_.clear();
    }
    std::vector<Array> dy;
    for (const Shape& shape : shapes) dy.push_back(fill.normal(shape));
    for (const Var& v : run_.place(tape_, dy)) gradients_.push_back(v.value);
    tape_.clear();
  }

  std::vector<Var> variables() {
    std::vector<Var> vars;
    for (size_t i = 0; i < values_.size(); ++i)
      vars.push_back(inputs_[i].gradient ? tape_.variable(values_[i]) : Var{values_[i]});
    return vars;
  }

  void mark(const std::vector<Var>& outs) {
    for (size_t i = 0; i < outs.size(); ++i) {
      if (!outs[i].slot) continue;
      if (spec_.loss)
        tape_.loss(outs[i]);
      else
        tape_.seed(outs[i], gradients_[i]);
    }
  }

  const OpSpec& spec_;
  const Case& case_;
  OpRun run_;
  Profile profile_;
  Tape tape_;
  std::vector<Array> inputs_;
  std::vector<Tensor> values_, gradients_;
  Direction forward_, backward_;
};

struct Chosen {
  const OpSpec* spec;
  const Case* bench;
};

std::vector<Chosen> choose(const std::string& op) {
  std::vector<Chosen> chosen;
  std::vector<std::string_view> names;
  for (const OpSpec& spec : op_specs()) {
    bool benched = false;
    for (const Case& c : spec.cases) {
      if (!c.bench) continue;
      benched = true;
      if (spec.name.starts_with(op)) chosen.push_back({&spec, &c});
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

}  // namespace

std::vector<KernelRow> bench_ops(const OpsOptions& options,
                                 const std::function<void(int64_t done, int64_t total)>& progress) {
  std::vector<KernelRow> rows;
  const std::vector<Chosen> chosen = choose(options.op);
  for (size_t i = 0; i < chosen.size(); ++i) {
    CaseBench bench(*chosen[i].spec, *chosen[i].bench, options.seed);
    for (int r = 0; r < kWarmUps; ++r) bench.repeat(false);
    for (int r = 0; r < options.repeats; ++r) bench.repeat(true);
    bench.rows(rows);
    progress(static_cast<int64_t>(i + 1), static_cast<int64_t>(chosen.size()));
  }
  return rows;
}

}  // namespace sft
