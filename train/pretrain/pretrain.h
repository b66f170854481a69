// The whole job of sft-pretrain: a model, a manifest, a configuration; a run directory with
// targets/ beside its checkpoints.
#pragma once

#include "train/job.h"

namespace sft {

// config.pretrain.teacher empty: the model itself. Without a dev split evaluations use rows of the
// training split, and the log says so.
TrainerReport pretrain(const TrainJob& job);

}  // namespace sft
