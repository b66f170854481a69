// The head of a checkpoint of s3prl's downstream programs (Yang et al. 2021, arXiv:2105.01051):
// Downstream, and Featurizer, the weights of the hidden states it reads.
//
//   asr, ctc                            projector, then LSTMs (RNNs) or nothing, then linear
//   speech_commands, voxceleb1, emotion projector, mean over the frames, linear
//
// Any other head, or one of these with a part that we do not compute, is not kept.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/formats/torch_file.h"
#include "models/config.h"

namespace sft {

struct DownstreamHead {
  Config::Task task;                // kind empty: none is kept
  std::vector<TensorInfo> tensors;  // under our names
  int64_t in_file = 0;              // tensors, kept or not
  std::vector<std::string> remarks;
};

// `config` is that of the encoder under it.
DownstreamHead downstream_head(const TorchFile& file, const Config& config);

}  // namespace sft
