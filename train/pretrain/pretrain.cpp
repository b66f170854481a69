#include "train/pretrain/pretrain.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <functional>

#include "engine/device.h"
#include "engine/glob.h"
#include "models/initialise.h"
#include "train/pretrain/contrastive.h"
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

struct Session {
  const TrainJob& job;
  ModelFile base;
  std::string base_id;
  Config config;
  Data data;
};

// The parameters of a model, and the device they lie on.
struct Bound {
  std::unique_ptr<cuda::Runtime> gpu;
  ParamStore store;

  // The backbone of the base and those of its other tensors that `keep` wants; what the model needs
  // beside them is new.
  template <class Model>
  Bound(const Session& s, Model& model, const std::function<bool(const std::string&)>& keep)
      : gpu(open_device(s.job.config.run.device, math_named(s.job.config.run.math))),
        store(gpu.get()) {
    const RunConfig& c = s.job.config;
    TensorMap tensors = s.base.tensors;
    std::erase_if(tensors.tensors,
                  [&](const auto& t) { return !is_backbone(t.first) && !keep(t.first); });
    initialise_missing(tensors, tensor_specs(model), static_cast<uint64_t>(c.run.seed));
    const auto placement = [&](std::string_view name) {
      return std::any_of(c.train.freeze.begin(), c.train.freeze.end(),
                         [&](const std::string& pattern) { return glob_match(pattern, name); })
                 ? -1
                 : 0;
    };
    store.bind(param_requests(model), tensors, s.job.model, placement, {"model"});
  }
};

RunDir begin(const Session& s) {
  return s.job.dry_run ? RunDir(s.job.run) : open_run(s.job, s.base_id);
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

TrainerReport predict_clusters(const Session& s) {
  const TrainJob& job = s.job;
  const RunConfig& c = job.config;
  const std::unique_ptr<FeatureSource> source = source_of(job, s.data.train);
  PretrainModel model{Encoder(s.config), PretrainHead(s.config, c.pretrain.clusters)};
  // The clusters are new, so is what predicts them.
  Bound bound(s, model, [](const std::string&) { return false; });
  RunDir run = begin(s);
  const Targets targets = job.dry_run ? blank_targets(c, s.config, s.data)
                                      : targets_of(job, run, source.get(), s.config, s.data);
  const auto objective =
      masked_prediction_objective(c, model, targets, s.data.train, s.data.dev, frame_budget(job));
  return train(job, s.base_id, s.config, bound.store, {}, *objective, run);
}

// Of the concatenated codes: that of the file's codebook, or what the predictions have.
int64_t code_width(const Session& s) {
  const auto& p = s.config.pretrain;
  if (const Tensor codebook = s.base.tensors.find("pretrain.vq.codebook");
      codebook.data && codebook.shape.rank() == 2)
    return codebook.width() * p.vq_groups;
  if (p.dim % p.vq_groups)
    fail(Kind::input, Hint{"sft-init --set wav2vec2.pretrain.vq.groups=2"},
         "{}: configuration: pretrain.vq.groups {} does not divide pretrain.dim {}",
         printable(s.base.path), p.vq_groups, p.dim);
  return p.dim;
}

// Utterances of one frame have no other frame to be told from.
void check_negatives(const Session& s) {
  for (const Split* split : {&s.data.train, &s.data.dev}) {
    int64_t alone = 0;
    for (int64_t samples : split->samples()) alone += s.config.frames(samples) < 2;
    const std::string& name = split->manifest.name;
    if (alone == static_cast<int64_t>(split->manifest.rows.size()))
      fail(Kind::input, "{}: no utterance has two frames, so there is nothing to tell apart", name);
    if (alone)
      s.job.say(fmt::format("{}: {} of {} utterances have a single frame and are never hidden",
                            name, alone, split->manifest.rows.size()));
  }
}

TrainerReport contrast(const Session& s) {
  const TrainJob& job = s.job;
  ContrastiveModel model{Encoder(s.config), ContrastiveHead(s.config, code_width(s))};
  check_negatives(s);
  const bool again = s.base.tensors.find("pretrain.vq.codebook").data != nullptr;
  job.say(again ? "quantiser: the model's, which is trained on" : "quantiser: a new one");
  Bound bound(s, model, [](const std::string& name) {
    return name.starts_with("pretrain.proj.") || name.starts_with("pretrain.vq");
  });
  RunDir run = begin(s);
  const auto objective =
      contrastive_objective(job.config, model, s.data.train, s.data.dev, frame_budget(job));
  return train(job, s.base_id, s.config, bound.store, {}, *objective, run);
}

}  // namespace

TrainerReport pretrain(const TrainJob& job) {
  Session s{job, open_base(job), {}, {}, {}};
  const bool contrastive = job.config.pretrain.objective == "wav2vec2";
  if (contrastive && s.base.config.arch != "wav2vec2")
    fail(Kind::usage, Hint{"sft-init wav2vec2-base makes one"},
         "{}: is a {} model, the objective wav2vec2 trains a wav2vec2 model",
         printable(s.base.path), s.base.config.arch);
  s.base_id = model_id(s.base.tensors);
  if (const auto finished = look_at_run(job, s.base_id)) return *finished;
  s.config = pretrained(s.base.config, job.config, s.base_id);
  s.data = read_data(job, s.config);
  return contrastive ? contrast(s) : predict_clusters(s);
}

}  // namespace sft
