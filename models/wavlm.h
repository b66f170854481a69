// What WavLM (Chen et al. 2022, arXiv:2110.13900) has beyond HuBERT: a relative position bias, one
// table for all layers, which each layer gates for itself by what goes into its attention.
//
//   score_ij += gate_i table[bucket(j - i)]                      (engine/ops/attention.h)
#pragma once

#include <vector>

#include "autograd/functions.h"
#include "models/config.h"
#include "models/module.h"

namespace sft {

// The bucket of each distance (key - query) from -max_distance to max_distance; farther ones share
// those of the ends. Half of the buckets are for keys behind, half for keys ahead; of these, half
// are for one distance each and the others ever wider. In f32, like the reference's code.
std::vector<int32_t> relative_buckets(int64_t buckets, int64_t max_distance);

// Of each layer.
struct RelativeGate {
  Param weight, bias, scale;  // [8, D], [8], [H]

  RelativeGate() = default;
  explicit RelativeGate(const Config& config);

  template <class V>
  void visit(V&& v) {
    v("weight", weight), v("bias", bias), v("scale", scale);
  }
  // x [T, C], what queries are made of -> [H, T].
  Var operator()(Tape& t, Var x) const { return rel_gate(t, x, weight, bias, scale); }
};

}  // namespace sft
