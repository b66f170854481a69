// --device and --math, for every tool that computes.
#pragma once

#include <string>

#include "engine/math.h"
#include "tools/cli.h"
#include "train/run_config.h"

namespace sft {

struct DeviceOptions {
  std::string device = "cpu", math = "exact";

  void add_to(Cli& cli);
  // After parse(): on cuda the default is bf16; Kind::usage for what the device or CPU has not.
  void settle(const Cli& cli);
  // The same for a configuration: run.device and run.math, where they were given.
  void apply(const Cli& cli, ConfigBuilder& builder) const;
  Math chosen() const { return math_named(math); }
};

}  // namespace sft
