// Initial values of parameters, as fairseq gives them (HuBERT's and wav2vec 2.0's code): drawn per
// tensor from the site init.NAME, so a tensor's values depend on the seed and its name alone.
//
//   conv.*            N(0, 2 / fan_in), biases U(+-1 / sqrt(fan_in))
//   feat_proj, pretrain.proj, .vq_out, .distill, task.*   U(+-1 / sqrt(fan_in)), with biases
//   enc.* linear      N(0, 0.02^2), biases 0
//   pos_conv          v N(0, 4 / (K C)), g its norms, bias 0; without a norm U(+-1 / sqrt(fan_in))
//   norms             1 and 0;  mask_emb, pretrain.label_emb U[0, 1);  task.layer_weights 0
//   pretrain.vq       codebook U[0, 1), proj N(0, 1), its bias 0
//   task.rnn.*        U(+-1 / sqrt(H)), all four tensors
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "engine/formats/tensor_file.h"
#include "engine/params.h"

namespace sft {

// Adds every tensor of `specs` that `tensors` does not have.
void initialise_missing(TensorMap& tensors, const std::vector<TensorSpec>& specs, uint64_t seed);

}  // namespace sft
