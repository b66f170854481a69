// The whole job of sft-train: a model, a manifest, a configuration; a run directory.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "train/run_config.h"
#include "train/trainer.h"

namespace sft {

struct TrainJob {
  std::string model;  // path
  RunConfig config;   // with data.manifest
  std::string run;    // output folder
  bool resume = false, force = false, dry_run = false;
  std::vector<std::string> command_line;                                    // for record.json
  std::function<void(const std::string&)> say = [](const std::string&) {};  // lines for people
  OnProgress progress = [](int64_t, double, const std::string&) {};
  std::function<void(int64_t done, int64_t total)> checking = [](int64_t, int64_t) {};  // of data
};

// CTC or classification, as config.task.kind says.
TrainerReport finetune(const TrainJob& job);

}  // namespace sft
