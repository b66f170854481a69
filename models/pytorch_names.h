// Names of fairseq, s3prl and unilm: how each family's own program spells tensors and what files it
// makes. One list serves reading (pytorch.cpp) and writing (pytorch_write.cpp).
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "models/names.h"

namespace sft {

constexpr std::string_view kOurKeys = "sft";       // what fairseq has no keys for
constexpr std::string_view kMadeKey = "sft.made";  // heads that only s3prl needs

// Of a fine-tuned model: the encoder, and the CTC head on it.
constexpr std::string_view kFineTuned = "w2v_encoder.w2v_model.";

// The files that a family's own program makes.
enum class TorchForm {
  fairseq,    // and, converted, s3prl's
  unilm,      // one flat cfg beside the model
  distiller,  // of s3prl's own pre-training
  bare,       // the model alone
};

struct TorchFamily {
  std::string_view arch;
  std::span<const Spelling> names;  // before those of the backbone
  std::string_view sign;            // a tensor that only this family has
  TorchForm form;
  std::vector<std::string_view> ignorable;  // parts of pre-training that nothing here computes
  std::string_view ctc;                     // fairseq's class with a CTC head
};
std::span<const TorchFamily> torch_families();
const TorchFamily* family_named(std::string_view arch);  // null: not one of these

std::span<const Spelling> backbone_names();
// Where every convolution has a norm, it stands between two transposes.
std::span<const Spelling> layer_mode_names();
std::span<const Spelling> ctc_head_names();

}  // namespace sft
