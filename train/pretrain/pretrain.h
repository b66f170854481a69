// The whole job of sft-pretrain: a model, a manifest, a configuration; a run directory with
// targets/ beside its checkpoints (hubert).
#pragma once

#include "train/job.h"

namespace sft {

// pretrain.objective: hubert (masked_prediction.h) or wav2vec2 (contrastive.h). Heads of a
// wav2vec 2.0 model that fit are trained on; all others are new. config.pretrain.teacher empty: the
// model itself. Without a dev split evaluations use rows of the training split, and the log says
// so.
TrainerReport pretrain(const TrainJob& job);

}  // namespace sft
