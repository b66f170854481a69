#include "train/finetune.h"

#include <fmt/format.h>

#include "engine/device.h"
#include "models/initialise.h"
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

Data read_data(const TrainJob& job, const Config& model) {
  const RunConfig& c = job.config;
  const Manifest all = read_manifest(c.data.manifest);
  Data data;
  if (c.task.kind == "ctc") data.units = Units::named(c.data.units);
  DataCheckOptions options{.units = data.units};
  if (data.units) options.target = target_text(c.data.units, parse_normalise(c.data.normalize));
  const auto read = [&](const std::string& name) {
    return read_split(job, all.select(name, c.data.split_column), name, model, options);
  };
  data.train = read(c.data.train);
  data.dev = read(c.data.dev);
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

}  // namespace

TrainerReport finetune(const TrainJob& job) {
  const RunConfig& c = job.config;
  const std::unique_ptr<cuda::Runtime> gpu = open_device(c.run.device, math_named(c.run.math));
  const ModelFile base = open_base(job);
  const std::string base_id = model_id(base.tensors);
  if (const auto finished = look_at_run(job, base_id)) return *finished;
  const Data data = read_data(job, base.config);
  Config config = with_head(base.config, c, data);
  config.provenance.set("sft.base.id", base_id);
  config.provenance.set("sft.train.recipe", c.train.recipe);
  config.provenance.set("sft.train.steps", c.train.steps);
  config.provenance.set("sft.train.seed", c.run.seed);

  FineTuneModel model{Encoder(config), {TaskHead(config.task, config.width)}};
  TensorMap tensors = without_task(base.tensors);
  initialise_missing(tensors, tensor_specs(model.task), static_cast<uint64_t>(c.run.seed));
  ParamStore store(gpu.get());
  store.bind(param_requests(model), tensors, job.model,
             [&](std::string_view name) { return finetune_range(name, c.train.freeze); },
             {"head", "encoder"});

  const FrameBudget frames = frame_budget(job);
  const auto objective = data.units ? ctc_objective(c, model, *data.units, data.train, data.dev,
                                                    kDecodeThreads, frames)
                                    : classify_objective(c, model, data.classes, data.train,
                                                         data.dev, kDecodeThreads, frames);
  TensorMap pass_through;
  for (const auto& [name, tensor] : tensors.tensors)
    if (name.starts_with("pretrain.")) pass_through.tensors[name] = tensor;

  RunDir run(job.run);
  return train(job, base_id, config, store, std::move(pass_through), *objective, run);
}

}  // namespace sft
