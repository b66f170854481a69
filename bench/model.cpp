#include "bench/model.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <numeric>
#include <optional>

#include "bench/mix.h"
#include "bench/random_weights.h"
#include "engine/memory.h"
#include "engine/rng.h"
#include "engine/step_memory.h"
#include "engine/transfer.h"
#include "train/optimise.h"
#include "train/probe.h"
#include "train/tasks/finetune.h"

namespace sft {
namespace {

constexpr int kRate = 16000, kUnits = 32, kLabelsPerSecond = 16;
constexpr float kHeadDropout = 0.2f;
constexpr std::string_view kProbe = "probe:";

// Classes of SUPERB's tasks, and phones; of the others kUnits.
int outputs_of(const std::string& task) {
  if (task == "probe:pr") return 74;
  if (task == "probe:sid") return 1251;
  return task == "probe:ks" ? 12 : task == "probe:er" ? 4 : kUnits;
}

bool is_probe(const std::string& task) { return task.starts_with(kProbe); }

// Kind::usage if there is no such probe.
Config::Task probe_head(const std::string& task) {
  const RunConfig c = probe_config(task.substr(kProbe.size())).config();
  return {.kind = c.task.kind, .head = c.head.kind, .width = c.head.width, .layers = c.head.layers};
}

Config with_head(Config config, const Workload& workload) {
  if (is_probe(workload.task))
    config.task = probe_head(workload.task);
  else
    config.task = {.kind = "ctc", .head = workload.head.starts_with("linear") ? "linear" : "blstm"};
  for (int i = 0; i < outputs_of(workload.task); ++i)
    config.task.units.push_back(fmt::format("{}", i));
  return config;
}

// Seconds per step of each profiled op, over the timed steps.
class Kernels {
 public:
  void add(const Profile& profile) {
    for (const Profile::Row& row : profile.rows()) {
      Series& series = rows_[std::string(row.name)];
      series.seconds.push_back(row.seconds);
      series.last = row;
    }
  }
  std::vector<KernelRow> rows() const {
    std::vector<KernelRow> out;
    for (const auto& [name, series] : rows_)
      out.push_back({name, static_cast<double>(series.last.calls), spread_of(series.seconds),
                     series.last.flops, series.last.bytes});
    std::stable_sort(out.begin(), out.end(), [](const KernelRow& a, const KernelRow& b) {
      return a.seconds.median > b.seconds.median;
    });
    return out;
  }

 private:
  struct Series {
    std::vector<double> seconds;
    Profile::Row last;
  };
  std::map<std::string, Series> rows_;
};

// What a profile holds more than before, phase by phase.
class Phases {
 public:
  Phases(Profile& profile, cuda::Runtime* gpu) : profile_(profile), gpu_(gpu) {}
  void end(const char* name) {
    if (gpu_) gpu_->synchronize(), profile_.settle();
    PhaseTime phase{name, watch_.seconds() - seconds_, {}};
    for (const Profile::Row& row : profile_.rows()) {
      double& before = before_[std::string(row.name)];
      if (row.seconds > before) phase.ops.emplace_back(row.name, row.seconds - before);
      before = row.seconds;
    }
    std::stable_sort(phase.ops.begin(), phase.ops.end(),
                     [](const auto& a, const auto& b) { return a.second > b.second; });
    seconds_ += phase.seconds;
    phases_.push_back(std::move(phase));
  }
  std::vector<PhaseTime> take() { return std::move(phases_); }

 private:
  Profile& profile_;
  cuda::Runtime* gpu_;
  Stopwatch watch_;
  double seconds_ = 0;
  std::map<std::string, double> before_;
  std::vector<PhaseTime> phases_;
};

double seconds_of(const Profile& profile) {
  double seconds = 0;
  for (const Profile::Row& row : profile.rows()) seconds += row.seconds;
  return seconds;
}

class ModelBench {
 public:
  ModelBench(const Config& config, const Workload& workload)
      : trains_(workload.task != "extract"),
        whole_(workload.task == "train-full"),
        probes_(is_probe(workload.task)),
        ctc_(config.task.kind == "ctc"),
        workload_(workload),
        model_{Encoder(config),
               {TaskHead(config.task, config.width, probes_ ? config.states() : 0)}},
        free_bytes_(workload.gpu ? workload.gpu->free_bytes() : 0),
        store_(workload.gpu),
        memory_(workload.gpu),
        samples_(mix_samples(workload.mix, workload.batch)) {
    bind(workload.seed);
    make_batch(workload.seed);
    check_memory();
    make_audio(workload.seed);
    if (workload.head.ends_with("+cached")) keep_features();
    if (probes_) keep_states();
    open(/*dry=*/true);
    step();
    planned_ = store_.bytes() + (kept_ ? kept_->used() : 0) + memory_.peak();
    if (!workload.gpu) planned_ += source_bytes_;
    open(/*dry=*/false);
  }

  // Everything that was queued is done when it returns. phases: not null, told of each end.
  void step(Phases* phases = nullptr) {
    phases_ = phases;
    ctx().acts.rewind(), ctx().scratch.rewind();
    // As a trainer does it, unless a profile waits for each op.
    cuda::StepScope device_step(trains_ && !ctx().dry && !ctx().profile ? workload_.gpu : nullptr);
    if (trains_)
      update();
    else
      hidden(EncodeOptions{.keep_all = true});
    device_step.end();
    if (workload_.gpu) workload_.gpu->synchronize();
  }

  int64_t frames() const { return pack_.frames().total(); }
  int64_t samples() const { return std::accumulate(samples_.begin(), samples_.end(), int64_t{0}); }
  int64_t planned_bytes() const { return planned_; }
  // On a device: what is gone of its memory since the beginning.
  int64_t taken_bytes() const {
    return workload_.gpu ? free_bytes_ - workload_.gpu->free_bytes() : resident_memory();
  }
  void set_profile(Profile* profile) { ctx().profile = profile; }

 private:
  struct Step {
    Context ctx;
    Tape tape;
    Step(const Context& context, bool recording) : ctx(context), tape(ctx, recording) {}
  };

  // The context and tape of the steps to come; for real ones memory as the dry ones showed.
  void open(bool dry) {
    if (!dry) memory_.commit();
    step_ =
        std::make_unique<Step>(memory_.context(store_.prepared(), workload_.math, dry), trains_);
    ctx().rng = {workload_.seed, 0};
  }
  Context& ctx() { return step_->ctx; }
  Tape& tape() { return step_->tape; }
  void end_phase(const char* name) {
    if (phases_) phases_->end(name);
  }

  void bind(uint64_t seed) {
    TensorMap source;
    RandomWeights(seed).add(source, tensor_specs(model_));
    for (const auto& [name, tensor] : source.tensors) source_bytes_ += tensor.bytes();
    const std::vector<std::string> freeze{"conv.*"};
    store_.bind(param_requests(model_), source, "random weights",
                [&](std::string_view name) {
                  const int range = finetune_range(name, freeze);
                  return !trains_ || (range == 1 && !whole_) ? -1 : range;
                },
                {"head", "encoder"});
  }

  void make_batch(uint64_t seed) {
    std::vector<int32_t> utterances;
    const auto outputs = static_cast<uint32_t>(outputs_of(workload_.task));
    for (size_t b = 0; b < samples_.size(); ++b) {
      utterances.push_back(static_cast<int32_t>(b));
      Draws sound(seed, static_cast<uint32_t>(b), 0, fnv1a("bench.labels"));
      const int64_t labels = ctc_ ? int64_t{samples_[b]} * kLabelsPerSecond / kRate : 1;
      for (int64_t i = 0; i < labels; ++i)
        labels_.push_back(1 + static_cast<int32_t>(sound.below(outputs - 1)));
      label_starts_.push_back(static_cast<int32_t>(labels_.size()));
      weights_.push_back(1 / static_cast<float>(labels * static_cast<int64_t>(samples_.size())));
    }
    pack_.assign(model_.encoder.config, samples_, utterances);
    pooled_ = SegmentList(std::vector<int32_t>(samples_.size(), 1));
  }

  // Of one step without anything that is kept.
  void check_memory() {
    if (workload_.gpu) return;
    open(/*dry=*/true);
    step();
    const int64_t needed = memory_.peak() + 2 * samples() * int64_t{sizeof(float)};
    if (const int64_t free = available_memory(); needed > free)
      fail(Kind::resource, Hint{"a smaller --batch, or shorter audio"},
           "a step needs {} MiB of memory, {} MiB are free", needed >> 20, free >> 20);
  }

  void make_audio(uint64_t seed) {
    for (size_t b = 0; b < samples_.size(); ++b)
      waves_.push_back(noise(seed, static_cast<uint32_t>(b), samples_[b]));
  }

  Var features() {
    if (features_) return Var{features_};
    const Tensor wave = pack_.wave(ctx());
    for (size_t b = 0; !ctx().dry && b < waves_.size(); ++b)
      pack_.place(ctx(), wave, static_cast<int>(b), waves_[b]);
    end_phase("samples");
    return model_.encoder.features(tape(), wave, pack_);
  }

  // What `make` returns, computed once, in memory of its own.
  template <class Make>
  std::vector<Tensor> keep(Make&& make) {
    open(/*dry=*/true);
    std::vector<Tensor> kept = make();
    int64_t bytes = 0;
    for (const Tensor& like : kept)
      bytes += bytes_of(like.dtype, bucket_rows(like.rows()) * like.width()) + 64;
    kept_ = std::make_unique<Arena>(bytes, false, workload_.gpu);
    for (Tensor& tensor : kept) tensor = kept_->tensor(tensor.shape, tensor.dtype);
    tape().clear();
    open(/*dry=*/false);
    const std::vector<Tensor> made = make();
    for (size_t i = 0; i < made.size(); ++i) copy(ctx(), made[i], kept[i]);
    tape().clear();
    return kept;
  }
  void keep_features() {
    features_ = keep([&] { return std::vector<Tensor>{features()}; })[0];
  }
  void keep_states() {
    states_ = keep([&] { return states(); });
  }

  // All of them; of a probe that pools their means.
  std::vector<Tensor> states() {
    const Segments segments = pack_.frames();
    const HiddenStates all =
        model_.encoder.encode(tape(), features(), segments, {.keep_all = true});
    std::vector<Tensor> states;
    for (int i = 0; i < all.count; ++i)
      states.push_back(ctc_ ? all.states[i].value
                            : segment_mean(tape(), all.states[i], segments).value);
    return states;
  }

  // As sft-probe: the batch's rows of every state, put side by side.
  Var probe() {
    std::vector<Var> read;
    for (const Tensor& state : states_.empty() ? states() : states_) {
      const auto bytes = 2.0 * static_cast<double>(state.bytes());
      const Tensor to = ctx().activation(state.shape, state.dtype);
      ProfileScope profile(ctx().profile, "states", 0, bytes);
      copy(ctx(), state, to);
      read.push_back({to});
    }
    end_phase("states");
    return model_.task.head(tape(), std::span<const Var>(read), segments());
  }
  Segments segments() const { return ctc_ ? pack_.frames() : pooled_.view(); }

  Var hidden(const EncodeOptions& options) {
    const Var x = features();
    end_phase("convolutions");
    const Var last = model_.encoder.encode(tape(), x, pack_.frames(), options).last();
    end_phase("encoder");
    return last;
  }

  Var fine_tuned() {
    const Var last = hidden({.rates = training_rates(model_.encoder.config)});
    return model_.task.head(tape(), last, pack_.frames(), kHeadDropout);
  }

  void update() {
    ++ctx().rng.update;
    store_.forget_gradients();
    const Var logits = probes_ ? probe() : fine_tuned();
    tape().loss(ctc_ ? ctc(tape(), logits, segments(), {labels_, label_starts_}, weights_, 0).losses
                     : cross_entropy(tape(), logits, labels_, weights_));
    end_phase("head and loss");
    tape().backward();
    tape().clear();
    end_phase("backward");
    ScratchScope scratch(ctx().scratch);
    const Tensor numbers = ctx().temporary({2}, Dtype::f64);
    zero(ctx(), numbers);
    optimise(ctx(), store_, {.lr = 1e-4f, .clip = 1}, numbers.slice(0, 1), numbers.slice(1, 1));
    end_phase("update");
  }

  const bool trains_, whole_, probes_, ctc_;
  const Workload workload_;
  FineTuneModel model_;
  int64_t free_bytes_, source_bytes_ = 0, planned_ = 0;
  ParamStore store_;
  StepMemory memory_;
  std::vector<int32_t> samples_;  // of each utterance
  std::unique_ptr<Arena> kept_;
  std::unique_ptr<Step> step_;
  Phases* phases_ = nullptr;
  WavePack pack_;
  std::vector<std::vector<float>> waves_;
  std::vector<int32_t> labels_, label_starts_{0};
  std::vector<float> weights_;
  SegmentList pooled_;          // a row an utterance
  Tensor features_;             // kept
  std::vector<Tensor> states_;  // kept
};

}  // namespace

std::string Workload::id() const {
  return fmt::format("{}/{}/{}/{}/{}", task, arch, mix, batch, head);
}

namespace {

void settle_batch(Workload& w) {
  constexpr int64_t kMostSeconds = (int64_t{1} << 31) / kRate - 1;  // samples of a pack are int32
  const int usual = usual_batch(w.mix, w.task == "extract");
  const bool official = w.mix.starts_with("official:");
  if (w.batch < 0 || (official && w.batch != 0 && w.batch != usual))
    fail(Kind::usage, "--batch {}: expected {}", w.batch,
         official ? fmt::format("{}, a group of the recipe", usual) : "at least 1");
  if (!(w.batch_seconds >= 0) || w.batch_seconds > kMostSeconds)
    fail(Kind::usage, "--batch-as {}: expected at most {} seconds of audio", w.batch_seconds,
         kMostSeconds);
  if (w.batch_seconds > 0 && (w.batch != 0 || official))
    fail(Kind::usage, "--batch-as: {} utterances are asked for already",
         official ? usual : w.batch);
  if (w.batch_seconds > 0) w.batch = batch_of(w.mix, w.batch_seconds);
  if (w.batch == 0) w.batch = usual;
  const int64_t most = kMostSeconds * kRate / longest_of(w.mix);
  if (w.batch > most) fail(Kind::usage, "--batch {}: expected at most {}", w.batch, most);
}

}  // namespace

Workload complete(Workload w) {
  const bool extract = w.task == "extract";
  const bool probes = is_probe(w.task);
  if (probes) probe_head(w.task);
  if (!extract && !probes && w.task != "train-head" && w.task != "train-full")
    fail(Kind::usage, "--task {}: expected extract, train-head, train-full, merge or probe:TASK",
         printable(w.task));
  if (!is_mix(w.mix))
    fail(Kind::usage,
         "--mix {}: expected fixed:SECONDS, mixed, ls-train, ted3, ls-test, kw or official:ted3",
         printable(w.mix));
  if (w.head.empty()) w.head = extract || probes ? "all" : "blstm";
  const std::string kind = w.head.substr(0, w.head.find("+cached"));
  if (extract || probes ? w.head != "all" : kind != "linear" && kind != "blstm")
    fail(Kind::usage,
         "--head {}: expected linear or blstm, with +cached or without; all to extract and probe",
         printable(w.head));
  settle_batch(w);
  return w;
}

namespace {

std::vector<LaunchRow> launches_of(const Profile& profile) {
  std::vector<LaunchRow> rows;
  for (const Profile::Kernel& kernel : profile.kernels())
    rows.push_back({std::string(kernel.op), kernel.name, kernel.calls, kernel.seconds});
  std::stable_sort(rows.begin(), rows.end(),
                   [](const LaunchRow& a, const LaunchRow& b) { return a.seconds > b.seconds; });
  return rows;
}

// What one step after the other showed.
struct Steps {
  std::vector<double> wall, cpu, unaccounted;
  Kernels kernels;
  std::vector<PhaseTime> phases;  // of the last one

  // profile: null where the ops are not to be timed.
  void add(ModelBench& bench, Profile* profile, cuda::Runtime* gpu) {
    std::optional<Phases> phases;
    bench.set_profile(profile);
    if (profile) profile->clear();
    const double cpu_start = process_cpu_seconds();
    const Stopwatch watch;
    if (profile) phases.emplace(*profile, gpu);
    bench.step(phases ? &*phases : nullptr);
    wall.push_back(watch.seconds());
    cpu.push_back(process_cpu_seconds() - cpu_start);
    if (!profile) return;
    profile->settle();
    unaccounted.push_back(wall.back() - seconds_of(*profile));
    kernels.add(*profile);
    this->phases = phases->take();
  }
};

}  // namespace

ModelBenchResult bench_model(const Config& config, const Workload& workload,
                             const std::function<void(int64_t done, int64_t total)>& progress) {
  ModelBench bench(with_head(config, workload), workload);
  const Stopwatch warm_up;
  for (int i = 0; i < 3 && (i == 0 || warm_up.seconds() < 4); ++i) bench.step();
  Profile profile(workload.gpu, workload.launches);
  Steps timed, profiled;  // on the CPU the profile costs nothing, and the timed steps have it
  const int passes = workload.gpu ? 2 : 1;
  workload.between();
  for (int r = 0; r < workload.repeats; ++r) {
    timed.add(bench, workload.gpu ? nullptr : &profile, workload.gpu);
    workload.between();
    progress(r + 1, passes * workload.repeats);
  }
  for (int r = 0; workload.gpu && r < workload.repeats; ++r) {
    profiled.add(bench, &profile, workload.gpu);
    progress(workload.repeats + r + 1, passes * workload.repeats);
  }
  Steps& of_ops = workload.gpu ? profiled : timed;
  ModelBenchResult out{{.id = workload.id(),
                        .arch = workload.arch,
                        .task = workload.task,
                        .mix = workload.mix,
                        .head = workload.head,
                        .batch = workload.batch},
                       of_ops.kernels.rows(),
                       std::move(of_ops.phases),
                       launches_of(profile)};
  out.result.audio_seconds = static_cast<double>(bench.samples()) / kRate;
  out.result.frames = bench.frames();
  out.result.layers = config.layers, out.result.width = config.width, out.result.ffn = config.ffn;
  out.result.trains_encoder = workload.task == "train-full";
  out.result.step = spread_of(timed.wall);
  out.result.profiled_step = spread_of(of_ops.wall).median;
  out.result.cpu_seconds = spread_of(timed.cpu).median;
  out.result.unaccounted = spread_of(of_ops.unaccounted).median;
  out.result.planned_bytes = bench.planned_bytes();
  out.result.taken_bytes = bench.taken_bytes();
  return out;
}

}  // namespace sft
