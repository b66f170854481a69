// Configurations as fairseq, s3prl and unilm keep them in a checkpoint: dicts, argparse Namespaces
// or omegaconf objects of a pickle, none of which is executed.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/formats/pickle.h"
#include "engine/formats/torch_file.h"
#include "models/config.h"

namespace sft {

// Named values of a dict, a Namespace or a DictConfig; none of another kind of value.
std::optional<PickleValue> fields_of(std::optional<PickleValue> value);
// The value inside omegaconf's wrapping.
PickleValue unwrapped(PickleValue value);

// Where the keys of one model stand: what comes first wins.
struct FairseqSettings {
  std::string path;                // for messages
  std::vector<PickleValue> model;  // fields
  std::vector<PickleValue> task;
};

// "hubert", "wav2vec2", "wavlm", "data2vecaudio", by _name or arch; empty: they do not say.
std::string family_of(const FairseqSettings& settings);

// What a model of that family is where its file does not say.
Config default_config(std::string_view family, std::string_view where);

// Absent keys take fairseq's defaults, those of DistilHuBERT s3prl's. Kind::input for values of
// another type and for what is not computed here.
Config config_of(const FairseqSettings& settings, std::string_view family);

// (dim, kernel, stride) of each convolution, out of the expression that fairseq evaluates:
// "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512, 2, 2)] * 2". Sums of lists, a list times a number;
// anything else is Kind::input.
struct ConvLayers {
  std::vector<int64_t> dims, kernels, strides;
};
ConvLayers parse_conv_layers(std::string_view text, std::string_view where);
std::string conv_layers_text(const Config& config);

// The dicts that fairseq's and s3prl's own code builds the model from.
TorchTree model_settings(const Config& config);
TorchTree task_settings(const Config& config);
// The same of a model fine-tuned with CTC, which has those of the pre-trained one inside: the whole
// cfg. `class_name` of fairseq.
TorchTree fine_tuned_settings(const Config& config, std::string_view class_name);
TorchTree distiller_settings(const Config& config);

}  // namespace sft
