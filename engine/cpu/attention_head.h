// One head of one utterance, as engine/cpu/attention-inl.h computes it.
#pragma once

#include <cstdint>

#include "engine/rng.h"

namespace sft {

// Matrices [T, D], rows qkv_stride or y_stride apart.
struct AttentionHead {
  const float *q, *k, *v;
  int64_t qkv_stride;
  float* y;
  float* lse;  // [T]
  int64_t y_stride;
  int64_t T, D;
  Rng rng;
  Dropout dropout;  // of this head
  uint32_t utterance;
  const float *gate, *table;  // [T], [2 reach + 1]; null: no bias
  int64_t reach;
};

struct AttentionHeadGrads {
  const float* dy;
  int64_t dy_stride;
  float *dq, *dk, *dv;  // null: not wanted
  int64_t dqkv_stride;
  bool add;
  float* dgate;  // [T]; null: not wanted
  bool dgate_add;
  float* dtable;  // [2 T - 1], by key - query, written; null: not wanted
};

}  // namespace sft
