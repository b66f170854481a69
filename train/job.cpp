#include "train/job.h"

#include <fmt/format.h>

#include "engine/cuda/gemm_choices.h"
#include "engine/cuda/runtime.h"
#include "engine/memory.h"
#include "engine/ops/lstm_library.h"
#include "models/encoder.h"
#include "train/record.h"

namespace sft {
namespace {

void say_ranges(const TrainJob& job, const ParamStore& store) {
  const auto count = [&](int range) {
    int64_t sum = 0;
    for (const ParamStore::Named& named : store.named())
      if (named.range == range) sum += named.value.count();
    return sum;
  };
  std::string line = "parameters:";
  for (size_t r = 0; r < store.ranges().size(); ++r)
    line += fmt::format(" {} {},", store.ranges()[r].name, count(static_cast<int>(r)));
  line += fmt::format(" frozen {}", count(-1));
  const int64_t head_only = head_only_steps(job.config.train.steps, job.config.train.head_only);
  if (store.ranges().size() > 1)
    line += fmt::format("; the head alone for {} of {} updates", head_only, job.config.train.steps);
  job.say(line);
}

double mib(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

void say_memory(const TrainJob& job, const Trainer::MemoryPlan& plan) {
  std::string line = fmt::format(
      "memory: {:.0f} MiB (program and model file {:.0f}, parameters {:.0f}, "
      "activations {:.0f}, scratch {:.0f}, data {:.0f})",
      mib(plan.total()), mib(plan.process), mib(plan.parameters), mib(plan.activations),
      mib(plan.scratch), mib(plan.data));
  if (plan.micro_frames)
    line += fmt::format("; batches are cut into pieces of {} frames", plan.micro_frames);
  job.say(line);
}

void say_bad(const TrainJob& job, const Split& split, const std::string& name) {
  job.say(fmt::format("{}: {} of {} rows are left out", name, split.check.bad,
                      split.manifest.rows.size()));
  for (size_t i = 0; i < split.manifest.rows.size(); ++i)
    if (const std::string& fault = split.check.rows[i].fault; !fault.empty())
      job.say(fmt::format("{}: {}", split.manifest.where(split.manifest.rows[i]), fault));
}

}  // namespace

std::vector<int64_t> Split::samples() const {
  std::vector<int64_t> samples;
  for (const CheckedRow& row : check.rows) samples.push_back(row.samples);
  return samples;
}

Split read_split(const TrainJob& job, Manifest manifest, const std::string& name,
                 const Config& model, DataCheckOptions options) {
  const RunConfig& c = job.config;
  options.limits = {c.data.min_seconds, c.data.max_seconds};
  options.hop = static_cast<int>(model.hop());
  options.receptive = static_cast<int>(model.receptive());
  options.min_samples = model.min_samples();
  Split split{std::move(manifest), {}};
  const auto total = static_cast<int64_t>(split.manifest.rows.size());
  split.check = check_data(split.manifest, options,
                           [&](int64_t done) { job.reading("check data", done, total); });
  if (split.check.bad && split.check.bad <= c.data.max_bad) say_bad(job, split, name);
  drop_bad(split.manifest, split.check, c.data.max_bad);
  if (split.manifest.rows.empty())
    fail(Kind::input, "{}: split {} has no usable row", split.manifest.name, name);
  return split;
}

DropoutRates dropout_rates(const RunConfig& config, const Config& model) {
  DropoutRates rates = training_rates(model);
  const auto choose = [](double wanted, float& rate) {
    if (wanted >= 0) rate = static_cast<float>(wanted);
  };
  choose(config.model.dropout, rates.hidden);
  choose(config.model.attention_dropout, rates.attention);
  choose(config.model.activation_dropout, rates.activation);
  choose(config.model.input_dropout, rates.input);
  return rates;
}

ModelFile open_base(const TrainJob& job) {
  ModelFile base = open_model(job.model);
  for (const std::string& remark : base.remarks) job.say(remark);
  check_finite(base);
  return base;
}

FrameBudget frame_budget(const TrainJob& job) {
  return {available_memory() / 4, job.disk < 0 ? free_disk(job.run) / 4 : job.disk, job.run};
}

std::optional<TrainerReport> look_at_run(const TrainJob& job, const std::string& base_id) {
  if (!job.resume) {
    RunDir::check_new(job.run, job.force ? Existing::replace : Existing::refuse);
    return std::nullopt;
  }
  check_resumable(job.run, job.config, base_id);
  const RunDir run(job.run);
  if (!run.done()) return std::nullopt;
  const auto last = run.last_checkpoint(job.say);
  if (!last) fail(Kind::input, "{}: is finished, and has no checkpoint", job.run);
  job.say(fmt::format("{}: is finished ({} updates): nothing to do", job.run, last->step));
  return read_report(last->folder);
}

RunDir open_run(const TrainJob& job, const std::string& base_id) {
  if (job.resume) return RunDir::resume(job.run);
  return RunDir::create(job.run, to_toml(job.config),
                        record_json(job.command_line, job.model, base_id, job.config),
                        job.force ? Existing::replace : Existing::refuse);
}

TrainerReport train(const TrainJob& job, const std::string& base_id, const Config& model,
                    ParamStore& store, TensorMap pass_through, Objective& objective, RunDir& run) {
  Trainer trainer(job.config, model, store, std::move(pass_through), objective, run);
  say_ranges(job, store);
  const int64_t available = store.gpu() ? store.bytes() + store.gpu()->free_bytes() / 10 * 9
                                        : available_memory() / 10 * 6;
  // Before anything is planned: it depends on who computes what.
  if (store.gpu() && job.resume)
    if (const auto remark = cuda::load_gemm_choices(*store.gpu(), job.run + "/gemm.txt");
        !remark.empty())
      job.say(remark);
  say_memory(job, trainer.plan_memory(available));
  if (const int64_t bytes = objective.on_disk().bytes)
    job.say(
        fmt::format("disk: {:.0f} MiB of frames in {} while the run lasts", mib(bytes), job.run));
  if (store.gpu())
    for (const std::string& line : cuda::lstm_lines(*store.gpu())) job.say(line);
  if (job.dry_run) {
    job.say("dry run: nothing is written");
    return {};
  }
  if (!run.opened()) run = open_run(job, base_id);
  if (job.resume) {
    const bool found = trainer.resume(job.say);
    job.say(fmt::format("going on with {}{}", job.run,
                        found ? "" : ", from the beginning: it has no checkpoint yet"));
  }
  const TrainerReport report = trainer.run(job.progress);
  if (store.gpu()) job.say("graphs: " + store.gpu()->step_counts().text());
  if (report.peak_bytes)
    job.say(fmt::format("memory: at most {:.0f} MiB of the {:.0f} planned", mib(report.peak_bytes),
                        mib(report.planned_bytes)));
  if (const std::string why = objective.on_disk().failed; !why.empty())
    job.say(fmt::format("disk: frames could not be kept ({}), so they were computed again", why));
  return report;
}

}  // namespace sft
