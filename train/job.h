// What every training job does around its objective: data in, a run directory, the loop.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "models/checkpoint.h"
#include "models/layers.h"
#include "train/data_check.h"
#include "train/frame_store.h"
#include "train/run_config.h"
#include "train/trainer.h"

namespace sft {

struct TrainJob {
  std::string model;  // path
  RunConfig config;   // with data.manifest
  std::string run;    // output folder
  bool resume = false, force = false, dry_run = false;
  int64_t disk = -1;  // bytes of frames kept there meanwhile; -1: a quarter of what is free
  std::vector<std::string> command_line;                                    // for record.json
  std::function<void(const std::string&)> say = [](const std::string&) {};  // lines for people
  OnProgress progress = [](int64_t, double, const std::string&) {};
  // While data are read (and targets computed): phase, and how far it is.
  std::function<void(const char* phase, int64_t done, int64_t total)> reading =
      [](const char*, int64_t, int64_t) {};
};

// One split, checked: the rows that can be used, and what training needs to know of each.
struct Split {
  Manifest manifest;
  DataCheck check;

  std::vector<int64_t> samples() const;
};

// Checks the rows of `manifest` (`name`: of their split, for messages) for an encoder of this
// configuration, with data.min_seconds, .max_seconds and .max_bad. `options` says what targets to
// check; its other members are filled here.
Split read_split(const TrainJob& job, Manifest manifest, const std::string& name,
                 const Config& model, DataCheckOptions options);

// The model file's rates, where the run's configuration does not say otherwise.
DropoutRates dropout_rates(const RunConfig& config, const Config& model);

// The model to begin with: what there is to remark of it is said, its values are finite.
ModelFile open_base(const TrainJob& job);

// Where frames of frozen convolutions may be kept: a quarter of the free memory, then job.disk.
FrameBudget frame_budget(const TrainJob& job);

// Before the data are read: throws what would keep the run from being opened later. A run that is
// finished and is resumed has nothing left to do: its report.
std::optional<TrainerReport> look_at_run(const TrainJob& job, const std::string& base_id);

constexpr int kDecodeThreads = 2;

// The run directory, new or (job.resume) to go on with; base_id is the id of the model it begins
// with.
RunDir open_run(const TrainJob& job, const std::string& base_id);

// Prints what trains and the plan of memory, opens `run` if the caller did not, and trains to the
// end; a dry run stops after the plan. Other arguments as in Trainer.
TrainerReport train(const TrainJob& job, const std::string& base_id, const Config& model,
                    ParamStore& store, TensorMap pass_through, Objective& objective, RunDir& run);

}  // namespace sft
