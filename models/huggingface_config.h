// What config.json and preprocessor_config.json of transformers say of an encoder
// (docs/model-files.md).
#pragma once

#include <string_view>

#include "models/config.h"
#include "models/json_fields.h"

namespace sft {

constexpr std::string_view kOurKeys = "sft";  // of config.json: what transformers has no keys for

// "hubert", "wav2vec2", ...; empty: transformers has no class.
std::string_view model_type_of(std::string_view arch);

// preprocessor: null where the folder has none. task: of a head that is read beside the encoder.
// Kind::input for values of another type, and for what is not computed here.
Config config_from_huggingface(const JsonFields& config, const JsonFields* preprocessor,
                               const Config::Task& task);

}  // namespace sft
