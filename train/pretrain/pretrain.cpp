#include "train/pretrain/pretrain.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "engine/device.h"
#include "engine/glob.h"
#include "engine/memory.h"
#include "models/initialise.h"
#include "train/pretrain/masked_prediction.h"

namespace sft {
namespace {

bool has_rows(const Manifest& all, const std::string& column, const std::string& split) {
  return all.has(column) && std::any_of(all.rows.begin(), all.rows.end(), [&](const auto& row) {
           return all.value(row, column) == split;
         });
}

// Rows of `split` at even distances.
Split sample_of(const Split& split) {
  constexpr size_t kRows = 32;
  const size_t total = split.manifest.rows.size(), count = std::min(total, kRows);
  Split sample{{split.manifest.name, split.manifest.columns, {}}, {}};
  for (size_t i = 0; i < count; ++i) {
    sample.manifest.rows.push_back(split.manifest.rows[i * total / count]);
    sample.check.rows.push_back(split.check.rows[i * total / count]);
  }
  return sample;
}

struct Data {
  Split train, dev;
};

// Without a column of splits all rows are for training.
Data read_data(const TrainJob& job, const Config& model) {
  const auto& c = job.config.data;
  const Manifest all = read_manifest(c.manifest);
  Data data;
  data.train = read_split(job, all.has(c.split_column) ? all.select(c.train, c.split_column) : all,
                          c.train, model, {});
  if (has_rows(all, c.split_column, c.dev)) {
    data.dev = read_split(job, all.select(c.dev, c.split_column), c.dev, model, {});
  } else {
    data.dev = sample_of(data.train);
    job.say(fmt::format("{}: no split {}: evaluations use {} rows of the training split", all.name,
                        c.dev, data.dev.manifest.rows.size()));
  }
  return data;
}

// The backbone of the base; how it is trained is written into it.
Config pretrained(const Config& base, const RunConfig& c, const std::string& base_id) {
  Config config = base;
  config.task = {}, config.pretrain.distill = {};
  if (!config.mask_emb)
    fail(Kind::usage, Hint{"masked prediction needs one, such as HuBERT's"},
         "the model has no mask_emb ({})", config.arch);
  config.train.mask_prob = c.pretrain.mask_prob;
  config.train.mask_length = c.pretrain.mask_length;
  config.train.feature_grad_mult = c.pretrain.feature_grad_mult;
  config.pretrain.temp = c.pretrain.temperature;
  config.provenance.set("sft.base.id", base_id);
  config.provenance.set("sft.train.recipe", c.train.recipe);
  config.provenance.set("sft.train.steps", c.train.steps);
  config.provenance.set("sft.train.seed", c.run.seed);
  check_config(config, "the model to train");
  return config;
}

// The clusters are new, so is what predicts them.
TensorMap with_new_head(const TensorMap& base, PretrainModel& model, int64_t seed) {
  TensorMap tensors = base;
  std::erase_if(tensors.tensors, [](const auto& t) { return !is_backbone(t.first); });
  initialise_missing(tensors, tensor_specs(model), static_cast<uint64_t>(seed));
  return tensors;
}

// Where targets are still to be made: what they are made of.
std::unique_ptr<FeatureSource> source_of(const TrainJob& job, const Split& train) {
  if (job.resume && std::filesystem::exists(job.run + "/targets")) return nullptr;
  const auto& p = job.config.pretrain;
  auto source = feature_source(p.targets, p.teacher.empty() ? job.model : p.teacher);
  check_rows_for(*source, train, p.clusters);
  return source;
}

// Labels for as many frames, all the same: enough for the plan of memory.
Targets blank_targets(const RunConfig& c, const Config& model, const Data& data) {
  const auto labels = [&](const Split& split) {
    Labels labels;
    for (int64_t samples : split.samples()) labels.emplace_back(model.frames(samples), 0);
    return labels;
  };
  return {.clusters = c.pretrain.clusters, .train = labels(data.train), .dev = labels(data.dev)};
}

Targets targets_of(const TrainJob& job, const RunDir& run, FeatureSource* source,
                   const Config& model, const Data& data) {
  const std::string folder = run.file("targets");
  if (!source) return load_targets(folder, data.train, data.dev, model);
  Targets targets = make_targets(
      *source, data.train, data.dev, model,
      {.clusters = job.config.pretrain.clusters,
       .seed = static_cast<uint64_t>(job.config.run.seed),
       .say = job.say,
       .progress = [&](int64_t done, int64_t total) { job.reading("targets", done, total); }});
  save_targets(folder, source->name(), targets);
  return targets;
}

}  // namespace

TrainerReport pretrain(const TrainJob& job) {
  const RunConfig& c = job.config;
  const ModelFile base = open_base(job);
  const std::string base_id = model_id(base.tensors);
  if (const auto finished = look_at_run(job, base_id)) return *finished;
  const Config config = pretrained(base.config, c, base_id);
  const Data data = read_data(job, config);
  const std::unique_ptr<FeatureSource> source = source_of(job, data.train);
  PretrainModel model{Encoder(config), PretrainHead(config, c.pretrain.clusters)};
  const std::unique_ptr<cuda::Runtime> gpu = open_device(c.run.device);
  ParamStore store(gpu.get());
  const auto placement = [&](std::string_view name) {
    return std::any_of(c.train.freeze.begin(), c.train.freeze.end(),
                       [&](const std::string& pattern) { return glob_match(pattern, name); })
               ? -1
               : 0;
  };
  store.bind(param_requests(model), with_new_head(base.tensors, model, c.run.seed), job.model,
             placement, {"model"});
  RunDir run(job.run);
  if (!job.dry_run) run = open_run(job, base_id);
  const Targets targets = job.dry_run ? blank_targets(c, config, data)
                                      : targets_of(job, run, source.get(), config, data);
  const auto objective =
      masked_objective(c, model, targets, data.train, data.dev, available_memory() / 4);
  return train(job, base_id, config, store, {}, *objective, run);
}

}  // namespace sft
