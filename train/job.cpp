#include "train/job.h"

#include <fmt/format.h>
#include <unistd.h>

#include "models/encoder.h"
#include "train/record.h"

namespace sft {
namespace {

void say_ranges(const TrainJob& job, const ParamStore& store) {
  int64_t frozen = 0;
  for (const ParamStore::Named& named : store.named())
    if (named.range < 0) frozen += named.value.count();
  std::string line = "parameters:";
  for (const ParamStore::Range& range : store.ranges())
    line += fmt::format(" {} {},", range.name, range.count());
  line += fmt::format(" frozen {}", frozen);
  const int64_t head_only = head_only_steps(job.config.train.steps, job.config.train.head_only);
  if (store.ranges().size() > 1)
    line += fmt::format("; the head alone for {} of {} updates", head_only, job.config.train.steps);
  job.say(line);
}

double mib(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

void say_memory(const TrainJob& job, const Trainer::MemoryPlan& plan) {
  std::string line =
      fmt::format("memory: parameters {:.0f} MiB, activations {:.0f} MiB, scratch {:.0f} MiB",
                  mib(plan.parameters), mib(plan.activations), mib(plan.scratch));
  if (plan.micro_frames)
    line += fmt::format("; batches are cut into pieces of {} frames", plan.micro_frames);
  job.say(line);
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
  Split split{std::move(manifest), {}};
  const auto total = static_cast<int64_t>(split.manifest.rows.size());
  split.check = check_data(split.manifest, options,
                           [&](int64_t done) { job.reading("check data", done, total); });
  if (split.check.bad)
    job.say(fmt::format("{}: {} of {} rows cannot be used", name, split.check.bad, total));
  drop_bad(split.manifest, split.check,
           static_cast<int64_t>(c.data.max_bad * static_cast<double>(total)));
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

int64_t free_memory() {
  return static_cast<int64_t>(sysconf(_SC_AVPHYS_PAGES)) * sysconf(_SC_PAGESIZE);
}

RunDir open_run(const TrainJob& job, const std::string& base_id) {
  if (job.resume) {
    check_resumable(job.run, job.config, base_id);
    return RunDir::resume(job.run);
  }
  return RunDir::create(job.run, to_toml(job.config),
                        record_json(job.command_line, job.model, base_id, job.config),
                        job.force ? Existing::replace : Existing::refuse);
}

TrainerReport train(const TrainJob& job, const Config& model, ParamStore& store,
                    TensorMap pass_through, Objective& objective, RunDir& run) {
  Trainer trainer(job.config, model, store, std::move(pass_through), objective, run);
  say_ranges(job, store);
  say_memory(job, trainer.plan_memory(free_memory() / 10 * 6));
  if (job.resume && trainer.resume(job.say)) job.say(fmt::format("going on with {}", job.run));
  return trainer.run(job.progress);
}

}  // namespace sft
