// What the values of a tensor look like, and which of them look as if nobody had trained them
// (docs/sft-info.md).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "models/checkpoint.h"

namespace sft {

struct TensorStatistics {
  int64_t count = 0, zeros = 0, not_finite = 0;
  float min = 0, max = 0;          // of the finite values, like what follows
  double mean = 0, deviation = 0;  // standard
  // How far a matrix [rows, all other dimensions] is from independent draws of one distribution, in
  // standard deviations of what such draws would show: the largest of spread of the rows' norms,
  // spread of the columns' norms, spread of the rows' means, spread of the columns' means, and
  // tails heavier than those of a normal distribution. -1: not judged (below 16384 values, fewer
  // than 8 rows or columns, or a value that is not finite).
  double structure = -1;
};
TensorStatistics statistics(const Tensor& tensor);

struct NamedStatistics {
  std::string name;
  Shape shape;
  Dtype dtype = Dtype::f32;
  TensorStatistics values;
};
// In the order of their names; tensors side by side.
std::vector<NamedStatistics> statistics(const ModelFile& model);

struct Suspicion {
  std::string tensor, why;
};
// Not finite; or untrained: all zero, constant, mostly zero, or random numbers as at the start.
// Biases may be zero, norms may be at their start in one of weight and bias; of pretrain.* and of
// mask_emb, which only pre-training reads, randomness is not judged.
std::vector<Suspicion> suspicions(const std::vector<NamedStatistics>& tensors);

}  // namespace sft
