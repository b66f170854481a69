// The whole job of sft-train: a model, a manifest, a configuration; a run directory.
#pragma once

#include "train/job.h"

namespace sft {

// CTC or classification, as config.task.kind says.
TrainerReport finetune(const TrainJob& job);

}  // namespace sft
