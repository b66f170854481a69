// record.json of a run: what would be needed to repeat it.
#pragma once

#include <string>
#include <vector>

#include "train/run_config.h"

namespace sft {

// Command line, version, machine, seed, thread count, instruction set, id of the base, hash of the
// manifest.
std::string record_json(const std::vector<std::string>& command_line, const std::string& model,
                        const std::string& base_id, const RunConfig& config);

// Kind::usage, naming what differs, if the run in `folder` was begun with another configuration,
// base model or manifest.
void check_resumable(const std::string& folder, const RunConfig& config,
                     const std::string& base_id);

}  // namespace sft
