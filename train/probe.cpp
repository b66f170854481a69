#include "train/probe.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <map>

#include "engine/device.h"
#include "engine/memory.h"
#include "engine/nearest.h"
#include "models/extract.h"
#include "train/tasks/finetune.h"

namespace sft {
namespace {

struct TaskDefaults {
  std::string_view name;
  ProbeMetric metric;
  std::vector<std::pair<const char*, const char*>> keys;
};

// SUPERB trains for 30,000 to 200,000 updates of 16 or 32 utterances on sets of 10 to 400 hours;
// these defaults are for minutes of speech.
const std::vector<TaskDefaults>& task_defaults() {
  static const std::vector<TaskDefaults> tasks = {
      {"pr",
       ProbeMetric::per,
       {{"data.units", "phones"},
        {"head.kind", "projector"},
        {"eval.select", "per"},
        {"probe.steps", "2000"},
        {"probe.batch", "16"}}},
      {"asr",
       ProbeMetric::wer,
       {{"head.kind", "linear"},
        {"probe.steps", "2000"},
        {"probe.batch", "16"},
        {"probe.lr", "0.01"}}},
      {"sid", ProbeMetric::accuracy, {{"data.label", "speaker"}}},
      {"ks", ProbeMetric::accuracy, {{"data.label", "label"}}},
      {"er", ProbeMetric::accuracy, {{"data.label", "emotion"}}},
  };
  return tasks;
}

const TaskDefaults& defaults_of(const std::string& task) {
  for (const TaskDefaults& defaults : task_defaults())
    if (defaults.name == task) return defaults;
  fail(Kind::usage, Hint{did_you_mean(task, probe_tasks())},
       "--task {}: there is no such task (expected pr, asr, sid, ks or er)", printable(task));
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double mib(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

// ---- data

struct Part {
  const char* name;
  Split split;
  ProbeSet set;
};

struct Data {
  Part train{"train"}, dev{"dev"}, test{"test"};

  std::array<Part*, 3> parts() { return {&train, &dev, &test}; }
  std::vector<int64_t> samples() {
    std::vector<int64_t> all;
    for (Part* part : parts())
      for (int64_t n : part->split.samples()) all.push_back(n);
    return all;
  }
};

Data select_parts(const RunConfig& c) {
  const Manifest all = read_manifest(c.data.manifest);
  Data data;
  data.train.split.manifest = all.select(c.data.train, c.data.split_column);
  data.dev.split.manifest = all.select(c.data.dev, c.data.split_column);
  data.test.split.manifest = all.select(c.data.test, c.data.split_column);
  return data;
}

std::vector<std::string> classes_of_training(const Manifest& train, const std::string& column) {
  train.column(column);
  const std::vector<std::string> classes = classes_of(train, column);
  if (classes.size() < 2)
    fail(Kind::input,
         "{}: column {} has one value in the training split, {} (expected two at least)",
         printable(train.name), column, printable(classes[0]));
  return classes;
}

std::vector<std::vector<int32_t>> class_targets(const Manifest& manifest, const std::string& column,
                                                const std::vector<std::string>& classes) {
  std::vector<std::vector<int32_t>> targets;
  for (const Utterance& row : manifest.rows) {
    const std::string value(manifest.required(row, column));
    const auto at = std::lower_bound(classes.begin(), classes.end(), value);
    if (at == classes.end() || *at != value)
      fail(Kind::input, Hint{"--split-column may name another division of the rows"},
           "{}: {} is {}, which no training row is", manifest.where(row), column, printable(value));
    targets.push_back({static_cast<int32_t>(at - classes.begin())});
  }
  return targets;
}

Split check_part(const Part& part, const ProbeJob& job, const Config& model,
                 const std::optional<Units>& units) {
  const RunConfig& c = job.config;
  DataCheckOptions options{.units = units};
  if (units) options.target = target_text(c.data.units, parse_normalise(c.data.normalize));
  const auto reading = [&](const char* phase, int64_t done, int64_t total) {
    job.progress(phase, static_cast<double>(done), static_cast<double>(total));
  };
  return read_split({.config = c, .say = job.say, .reading = reading}, part.split.manifest,
                    part.name, model, options);
}

// Targets of all rows that can be used; the names of the outputs go into `settings`.
Data read_data(const ProbeJob& job, const Config& model, ProbeSettings& settings) {
  const RunConfig& c = job.config;
  Data data = select_parts(c);
  if (settings.ctc()) {
    settings.units = Units::named(c.data.units);
    settings.head.units = settings.units->symbols();
    settings.head.blank = settings.units->blank();
  } else {
    settings.head.units = classes_of_training(data.train.split.manifest, c.data.label);
    for (Part* part : data.parts())
      class_targets(part->split.manifest, c.data.label,
                    settings.head.units);  // before the audio is read
  }
  for (Part* part : data.parts()) {
    part->split = check_part(*part, job, model, settings.units);
    if (!settings.ctc())
      part->set.targets = class_targets(part->split.manifest, c.data.label, settings.head.units);
    else
      for (const CheckedRow& row : part->split.check.rows) part->set.targets.push_back(row.labels);
  }
  return data;
}

double most_frequent_share(const ProbeSet& set) {
  std::map<int32_t, size_t> counts;
  size_t most = 0;
  for (const std::vector<int32_t>& target : set.targets) most = std::max(most, ++counts[target[0]]);
  return static_cast<double>(most) / static_cast<double>(set.targets.size());
}

// ---- the encoder

int64_t memory_limit(const ProbeJob& job) {
  constexpr double kShare = 0.8;  // of what is free; the encoder and the head need some
  if (job.memory) return job.memory;
  return static_cast<int64_t>(kShare * static_cast<double>(available_memory()));
}

void check_memory(const ProbeJob& job, const Config& model, int64_t needed, int64_t states) {
  const int64_t limit = memory_limit(job);
  job.say(fmt::format("cache of hidden states: {:.1f} MiB", mib(needed)));
  if (needed > limit)
    fail(Kind::resource, Hint{"--states last, or fewer states, or fewer utterances"},
         "the hidden states need {:.1f} MiB ({} states of {} f32 for {} rows), {:.1f} MiB may be "
         "used",
         mib(needed), states, model.width, needed / (4 * states * model.width), mib(limit));
}

void encode(const ProbeJob& job, const Encoder& encoder, ParamStore& store,
            const StateOptions& options, Data& data) {
  const auto total = static_cast<double>(data.samples().size());
  double before = 0;
  for (Part* part : data.parts()) {
    part->set.cache = compute_states(
        encoder, store, part->split.manifest, part->split.samples(), options,
        [&](int64_t n) { job.progress("encode", before + static_cast<double>(n), total); });
    before += static_cast<double>(part->set.cache.utterances());
  }
}

ProbeSettings settings_of(const ProbeJob& job) {
  const RunConfig& c = job.config;
  ProbeSettings settings;
  settings.head = {
      .kind = c.task.kind, .head = c.head.kind, .width = c.head.width, .layers = c.head.layers};
  settings.metric = defaults_of(job.task).metric;
  settings.steps = c.probe.steps, settings.batch = c.probe.batch;
  return settings;
}

std::string target_column(const RunConfig& c, const ProbeSettings& settings) {
  if (!settings.ctc()) return c.data.label;
  return target_text(c.data.units, parse_normalise(c.data.normalize)).column;
}

ProbeReport describe(const ProbeJob& job, const ProbeSettings& settings, const Data& data) {
  const auto count = [](const Part& part) { return static_cast<int64_t>(part.set.targets.size()); };
  ProbeReport report{.task = job.task,
                     .column = target_column(job.config, settings),
                     .metric = settings.metric,
                     .outputs = settings.head.units,
                     .train = count(data.train),
                     .dev = count(data.dev),
                     .test = count(data.test)};
  if (!settings.ctc()) report.chance = most_frequent_share(data.test.set);
  return report;
}

// The only place where test data meets a head: one that dev data has chosen.
void fit(const ProbeJob& job, const ProbeSettings& settings, const Data& data,
         ProbeReport& report) {
  const int64_t seeds = job.config.probe.seeds;
  const double updates = static_cast<double>(job.rates.size()) * static_cast<double>(seeds) *
                         static_cast<double>(settings.steps);
  report.trials = run_trials(
      data.train.set, data.dev.set, settings, job.rates, static_cast<uint64_t>(job.config.run.seed),
      seeds, [&](int64_t done) { job.progress("train", static_cast<double>(done), updates); });
  report.chosen = best_trial(report.trials, settings.metric);
  for (const ProbeFit& fit : report.trials[report.chosen].fits) {
    report.tests.push_back(score_probe(data.test.set, settings, fit));
    report.layer_shares.push_back(layer_shares(data.train.set, settings, fit));
  }
}

}  // namespace

std::vector<std::string> probe_tasks() {
  std::vector<std::string> names;
  for (const TaskDefaults& defaults : task_defaults()) names.emplace_back(defaults.name);
  return names;
}

ConfigBuilder probe_config(const std::string& task) {
  const TaskDefaults& defaults = defaults_of(task);
  ConfigBuilder builder(defaults.metric == ProbeMetric::accuracy ? "classify" : "ctc");
  for (const auto& [key, value] : defaults.keys) builder.set(key, value, "--task " + task);
  return builder;
}

ProbeScore ProbeTrial::dev() const {
  ProbeScore mean;
  for (const ProbeFit& fit : fits) mean.value += fit.dev.value, mean.loss += fit.dev.loss;
  const auto count = static_cast<double>(fits.size());
  return {mean.value / count, mean.loss / count};
}

bool ProbeTrial::diverged() const {
  return std::any_of(fits.begin(), fits.end(), [](const ProbeFit& fit) { return fit.diverged; });
}

std::vector<ProbeTrial> run_trials(const ProbeSet& train, const ProbeSet& dev,
                                   const ProbeSettings& settings, std::span<const double> rates,
                                   uint64_t seed, int64_t seeds,
                                   const std::function<void(int64_t)>& progress) {
  std::vector<ProbeTrial> trials;
  int64_t done = 0;
  for (double lr : rates) {
    ProbeTrial& trial = trials.emplace_back(ProbeTrial{.lr = lr});
    for (int64_t s = 0; s < seeds; ++s, done += settings.steps)
      trial.fits.push_back(fit_probe(train, dev, settings, lr, seed + static_cast<uint64_t>(s),
                                     [&](int64_t step) { progress(done + step); }));
  }
  return trials;
}

size_t best_trial(const std::vector<ProbeTrial>& trials, ProbeMetric metric) {
  size_t best = trials.size();
  for (size_t i = 0; i < trials.size(); ++i) {
    if (trials[i].diverged()) continue;
    const ProbeScore score = trials[i].dev();
    if (best < trials.size()) {
      const ProbeScore so_far = trials[best].dev();
      if (!better(metric, score.value, so_far.value) &&
          (score.value != so_far.value || score.loss >= so_far.loss))
        continue;
    }
    best = i;
  }
  if (best == trials.size())
    fail(Kind::diverged, Hint{"a smaller --lr"},
         "probe: {} updates in a row had no finite gradient", kMaxProbeSkips);
  return best;
}

ProbeReport probe(const ProbeJob& job) {
  const RunConfig& c = job.config;
  ProbeSettings settings = settings_of(job);
  const std::unique_ptr<cuda::Runtime> gpu = open_device(c.run.device, math_named(c.run.math));
  const ModelFile model = open_model(job.model);
  for (const std::string& remark : model.remarks) job.say(remark);
  const std::string id = checked_id(model);
  StateOptions options;
  options.math = math_named(job.config.run.math);
  options.states = parse_states(c.probe.states, model.config);
  options.pooled = !settings.ctc();
  Data data = read_data(job, model.config, settings);
  ProbeReport report = describe(job, settings, data);
  report.model_id = id;
  report.states = options.states;
  report.cache_bytes = cache_bytes(model.config, data.samples(), options);
  check_memory(job, model.config, report.cache_bytes, static_cast<int64_t>(options.states.size()));

  const double start = now();
  Encoder encoder(model.config);
  ParamStore store(gpu.get());
  store.bind(param_requests(encoder), model.tensors, job.model);
  encode(job, encoder, store, options, data);
  const double encoded = now();
  fit(job, settings, data, report);
  report.encode_seconds = encoded - start, report.fit_seconds = now() - encoded;
  return report;
}

MeanDeviation mean_deviation(std::span<const double> values) {
  MeanDeviation out;
  const auto n = static_cast<double>(values.size());
  for (double v : values) out.mean += v / n;
  double squares = 0;
  for (double v : values) squares += (v - out.mean) * (v - out.mean);
  if (values.size() > 1) out.deviation = std::sqrt(squares / (n - 1));
  return out;
}

}  // namespace sft
