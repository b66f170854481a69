// What the tools that train share: options, the progress line, the report at the end.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "tools/device_options.h"
#include "train/job.h"

namespace sft {

struct TrainingOptions {
  std::string model, output, config;
  DeviceOptions device;
  std::vector<std::string> settings;
  int64_t steps = 0;
  double disk_cache = -1;  // GiB; -1: not given
  bool resume = false, dry_run = false, force = false, print_config = false;

  // `task` stands in the help: "TASK" for runs/MODEL-TASK.
  void add_to(Cli& cli, const std::string& task);
  // With --resume the configuration of the run there; the file, then --set, then flags; what a tool
  // sets itself comes after.
  void apply(const Cli& cli, ConfigBuilder& builder, const std::string& task) const;
  // The run's folder: -o, or runs/MODEL-TASK.
  std::string run(const std::string& task) const;
};

// Prints the configuration, or runs `train` and prints what came out.
void run_training(Cli& cli, const TrainingOptions& options, const ConfigBuilder& builder,
                  const std::string& task,
                  const std::function<TrainerReport(const TrainJob&)>& train);

}  // namespace sft
