#include "train/finetune.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <filesystem>

#include "engine/io/hash.h"
#include "models/initialise.h"
#include "train/record.h"
#include "train/tasks/finetune.h"

namespace sft {
namespace {

struct Data {
  Split train, dev;
  std::optional<Units> units;        // CTC
  std::vector<std::string> classes;  // classification
  int64_t bad = 0;

  std::vector<std::string> outputs() const { return units ? units->symbols() : classes; }
};

Split read_split(const Manifest& all, const TrainJob& job, const std::string& name,
                 const Config& model, const std::optional<Units>& units) {
  const RunConfig& c = job.config;
  Split split{all.select(name, c.data.split_column), {}};
  DataCheckOptions options;
  options.limits = {c.data.min_seconds, c.data.max_seconds};
  options.units = units;
  options.hop = static_cast<int>(model.hop()),
  options.receptive = static_cast<int>(model.receptive());
  if (units) options.target = target_text(c.data.units, parse_normalise(c.data.normalize));
  const auto total = static_cast<int64_t>(split.manifest.rows.size());
  split.check =
      check_data(split.manifest, options, [&](int64_t done) { job.checking(done, total); });
  if (split.check.bad)
    job.say(fmt::format("{}: {} of {} rows cannot be used", name, split.check.bad, total));
  drop_bad(split.manifest, split.check, static_cast<int64_t>(c.data.max_bad));
  if (split.manifest.rows.empty())
    fail(Kind::input, "{}: split {} has no usable row", all.name, name);
  return split;
}

Data read_data(const TrainJob& job, const Config& model) {
  const RunConfig& c = job.config;
  const Manifest all = read_manifest(c.data.manifest);
  Data data;
  if (c.task.kind == "ctc") data.units = Units::named(c.data.units);
  data.train = read_split(all, job, c.data.train, model, data.units);
  data.dev = read_split(all, job, c.data.dev, model, data.units);
  if (c.task.kind == "classify") {
    all.column(c.data.label);
    data.classes = classes_of(data.train.manifest, c.data.label);
    if (data.classes.size() < 2)
      fail(Kind::input, "{}: column {} has {} values (expected at least 2)", all.name, c.data.label,
           data.classes.size());
  }
  return data;
}

// The backbone of the base with a fresh head.
Config with_head(const Config& base, const RunConfig& c, const Data& data) {
  Config config = base;
  config.task = {.kind = c.task.kind,
                 .head = c.head.kind,
                 .width = c.head.width,
                 .layers = c.head.layers,
                 .blank = data.units ? data.units->blank() : 0,
                 .units = data.outputs()};
  check_config(config, "the model to train");
  return config;
}

TensorMap without_task(const TensorMap& tensors) {
  TensorMap kept = tensors;
  std::erase_if(kept.tensors, [](const auto& t) { return t.first.starts_with("task."); });
  return kept;
}

void say_ranges(const TrainJob& job, const ParamStore& store) {
  int64_t frozen = 0;
  for (const ParamStore::Named& named : store.named())
    if (named.range < 0) frozen += named.value.count();
  std::string line;
  for (const ParamStore::Range& range : store.ranges())
    line += fmt::format("{} {}, ", range.name, range.count());
  job.say(fmt::format("parameters: {}frozen {}; the head alone for {} of {} updates", line, frozen,
                      head_only_steps(job.config.train.steps, job.config.train.head_only),
                      job.config.train.steps));
}

int64_t free_memory() {
  return static_cast<int64_t>(sysconf(_SC_AVPHYS_PAGES)) * sysconf(_SC_PAGESIZE);
}

double mib(int64_t bytes) { return static_cast<double>(bytes) / (1 << 20); }

int decode_threads() { return 2; }

}  // namespace

TrainerReport finetune(const TrainJob& job) {
  const RunConfig& c = job.config;
  const ModelFile base = open_model(job.model);
  for (const std::string& remark : base.remarks) job.say(remark);
  check_finite(base);
  const std::string base_id = model_id(base.tensors);
  const Data data = read_data(job, base.config);
  Config config = with_head(base.config, c, data);
  config.provenance.set("sft.base.id", base_id);
  config.provenance.set("sft.train.recipe", c.train.recipe);
  config.provenance.set("sft.train.steps", c.train.steps);
  config.provenance.set("sft.train.seed", c.run.seed);

  FineTuneModel model{Encoder(config), {TaskHead(config.task, config.width)}};
  TensorMap tensors = without_task(base.tensors);
  initialise_missing(tensors, tensor_specs(model.task), static_cast<uint64_t>(c.run.seed));
  ParamStore store;
  store.bind(param_requests(model), tensors, job.model,
             [&](std::string_view name) { return finetune_range(name, c.train.freeze); },
             {"head", "encoder"});
  say_ranges(job, store);

  const int64_t cache = free_memory() / 4;
  const auto objective = data.units ? ctc_objective(c, model, *data.units, data.train, data.dev,
                                                    decode_threads(), cache)
                                    : classify_objective(c, model, data.classes, data.train,
                                                         data.dev, decode_threads(), cache);
  TensorMap pass_through;
  for (const auto& [name, tensor] : tensors.tensors)
    if (name.starts_with("pretrain.")) pass_through.tensors[name] = tensor;

  const std::string record = record_json(job.command_line, job.model, base_id, c);
  if (job.dry_run) {
    job.say("dry run: nothing is written");
    return {};
  }
  if (job.resume) check_resumable(job.run, c, base_id);
  RunDir run = job.resume ? RunDir::resume(job.run)
                          : RunDir::create(job.run, to_toml(c), record,
                                           job.force ? Existing::replace : Existing::refuse);
  Trainer trainer(c, config, store, pass_through, *objective, run);
  const Trainer::MemoryPlan plan = trainer.plan_memory(free_memory() / 10 * 6);
  job.say(fmt::format("memory: parameters {:.0f} MiB, activations {:.0f} MiB, scratch {:.0f} MiB{}",
                      mib(plan.parameters), mib(plan.activations), mib(plan.scratch),
                      plan.micro_frames ? fmt::format("; batches are cut into pieces of {} frames",
                                                      plan.micro_frames)
                                        : ""));
  if (job.resume && trainer.resume(job.say)) job.say(fmt::format("going on with {}", job.run));
  return trainer.run(job.progress);
}

}  // namespace sft
