// Checkpoints of fairseq, s3prl, unilm and Lightning, which are files of torch.save; nothing in
// them is executed (engine/formats/torch_file.h).
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "models/checkpoint.h"

namespace sft {

bool is_torch_file(const std::string& path);  // by its first bytes

// What the file is, is decided by the keys at its top (docs/model-files.md). The configuration is
// the file's own; where it has none (a state dict alone, s3prl's downstream checkpoints, Lightning)
// it follows from the shapes, as in every released model, and a remark says so. The units of
// fairseq's CTC head are those of the dictionary in the file, or in dict.ltr.txt beside it; without
// `with_heads` they are not looked at, and task heads dropped.
StoredModel open_torch_model(const std::string& path, bool with_heads = true);

// A checkpoint as it is being written: format "fairseq" or "s3prl".
struct TorchCheckpoint {
  TensorWriter writer;
  std::vector<TensorSpec> tensors;      // the writer's first ones, under our names
  std::vector<std::string> remarks;     // what was dropped or made, one line each
  TensorMap made;                       // the writer's other ones, in its order under its names:
  std::vector<std::string> made_names;  // s3prl refuses a model without its pre-training heads
  // dict.ltr.txt, which fairseq reads beside a fine-tuned model; empty: none.
  std::string dictionary;
};
TorchCheckpoint create_torch_model(const std::string& path, std::string_view format,
                                   const Config& config, const std::vector<TensorSpec>& tensors,
                                   Existing existing);

}  // namespace sft
