// k-means of frames: the labels that masked prediction learns (models.md 6.1).
//
// Start: greedy k-means++ (Arthur & Vassilvitskii 2007; of 2 + ln K candidates the one that helps
// most) on at most `start_rows` rows drawn without replacement. Then Lloyd's iterations on all
// rows. A cluster that loses all its rows takes the row farthest from its centroid, so the inertia
// never rises. Draws come from the site `kmeans` (docs/contract.md section 6); sums are in double
// in the order of rows: the same bits for any number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/context.h"

namespace sft {

struct KmeansOptions {
  int64_t clusters = 100;
  int iterations = 100;     // at most
  double tolerance = 1e-4;  // stop when the inertia falls by less than this part of it
  int64_t start_rows = 30000;
  uint64_t seed = 0;
};

struct Kmeans {
  std::vector<float> centroids;  // [K, C]
  std::vector<int32_t> labels;   // [T], the nearest of `centroids` (engine/ops/nearest.h)
  std::vector<double> inertia;   // sum of squared distances, before and after each iteration
};

// x [T, C] f32, T >= clusters. Errors (input): fewer rows than clusters, values that are not
// finite. Labels of further rows with the same centroids: nearest().
Kmeans kmeans(Context& ctx, Tensor x, const KmeansOptions& options);

}  // namespace sft
