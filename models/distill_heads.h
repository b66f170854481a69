// What DistilHuBERT predicts of its teacher (Chang et al. 2021, arXiv:2110.01900): from the last
// layer's output h one row of C numbers for each of n states of the teacher,
//
//   p_i = GELU(h up^T + b)[columns of i] W_i + b_i
//
// They are states of a frozen model, behind those of its layers: no gradient comes through them.
#pragma once

#include <span>

#include "models/config.h"
#include "models/layers.h"

namespace sft {

struct DistillHeads {
  Linear up;           // C -> n C
  Param weight, bias;  // [n, C, C], from row to column; [n, C]

  DistillHeads() = default;
  explicit DistillHeads(const Config& config);

  template <class V>
  void visit(V&& v) {
    v("0", up), v("1.weight", weight), v("1.bias", bias);
  }
  // h [T, C] -> states[i] [T, C].
  void operator()(Tape& t, Var h, std::span<Var> states) const;
};

}  // namespace sft
