// Assignment of k-means: the centroid that is nearest to each row.
//
//   label[t] = argmin_k |x_t - c_k|^2 = argmin_k |c_k|^2 / 2 - x_t . c_k,   the lowest k of equals
//
// The products are a blocked GEMM against centroids packed in panels, the minimum is taken in
// registers, so the [T, K] scores are never written. Every product is one sum over the columns in
// order: no label depends on threads, neighbours, or where its centroid stands in a panel.
#pragma once

#include "engine/context.h"

namespace sft {

struct NearestOut {
  Tensor label;     // [T] i32
  Tensor distance;  // [T] f32, |x_t - c_label|^2 as the sum of squared differences
};

// x [T, C] f32, rows may be strided; centroids [K, C] f32 dense, K >= 1. A row with a NaN gets
// label 0 and distance NaN. 2TKC FLOP; reads x once, packs the centroids once.
NearestOut nearest(Context& ctx, Tensor x, Tensor centroids);

// [T, K] |x_t - c_k|^2 as sums of squared differences, for a few centroids.
Tensor squared_distances(Context& ctx, Tensor x, Tensor centroids);

}  // namespace sft
