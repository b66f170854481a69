#include "train/kmeans.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/check.h"
#include "engine/cpu/parallel.h"
#include "engine/ops/nearest.h"

namespace sft {
namespace {

constexpr int64_t kColumns = 16;  // of a chunk of centroid columns: one cache line

// `count` rows of x without replacement, copied into acts.
Tensor draw_rows(Context& ctx, Tensor x, int64_t count, Draws& draws) {
  std::vector<int64_t> order(static_cast<size_t>(x.rows()));
  std::iota(order.begin(), order.end(), int64_t{0});
  const Tensor out = ctx.activation({count, x.width()});
  for (int64_t i = 0; i < count; ++i) {
    std::swap(order[i], order[i + draws.below(static_cast<uint32_t>(x.rows() - i))]);
    std::copy_n(x.row(order[i]), x.width(), out.row(i));
  }
  return out;
}

// k-means++ on x.
class Start {
 public:
  Start(Context& ctx, Tensor x, Draws& draws)
      : ctx_(ctx), x_(x), draws_(draws), nearest_(static_cast<size_t>(x.rows()), INFINITY) {}

  std::vector<float> centroids(int64_t clusters) {
    const int tries = 2 + static_cast<int>(std::log(static_cast<double>(clusters)));
    std::vector<float> out;
    take_best({static_cast<int64_t>(draws_.below(static_cast<uint32_t>(x_.rows())))}, out);
    while (static_cast<int64_t>(out.size()) < clusters * x_.width()) {
      std::vector<int64_t> candidates;
      for (int i = 0; i < tries; ++i) candidates.push_back(draw());
      take_best(candidates, out);
    }
    return out;
  }

 private:
  // A row with probability proportional to its squared distance; any if all are zero.
  int64_t draw() {
    const double total = std::accumulate(nearest_.begin(), nearest_.end(), 0.0);
    double left = draws_.uniform() * total;
    for (int64_t t = 0; t < x_.rows(); ++t)
      if ((left -= nearest_[t]) < 0) return t;
    return x_.rows() - 1;
  }

  // Appends the candidate that leaves the least sum of squared distances, the first of equals.
  void take_best(const std::vector<int64_t>& candidates, std::vector<float>& out) {
    ScratchScope scope(ctx_.acts);
    const auto K = static_cast<int64_t>(candidates.size());
    const Tensor centroids = ctx_.activation({K, x_.width()});
    for (int64_t k = 0; k < K; ++k)
      std::copy_n(x_.row(candidates[k]), x_.width(), centroids.row(k));
    const Tensor distance = squared_distances(ctx_, x_, centroids);
    std::vector<double> left(static_cast<size_t>(K));
    for (int64_t t = 0; t < x_.rows(); ++t)
      for (int64_t k = 0; k < K; ++k) left[k] += std::min(nearest_[t], distance.row(t)[k]);
    const auto best = std::min_element(left.begin(), left.end()) - left.begin();
    out.insert(out.end(), centroids.row(best), centroids.row(best) + x_.width());
    for (int64_t t = 0; t < x_.rows(); ++t)
      nearest_[t] = std::min(nearest_[t], distance.row(t)[best]);
  }

  Context& ctx_;
  Tensor x_;
  Draws& draws_;
  std::vector<float> nearest_;  // squared distance to the nearest centroid so far
};

std::vector<float> start(Context& ctx, Tensor x, const KmeansOptions& options) {
  ScratchScope scope(ctx.acts);
  Draws draws(options.seed, 0, 0, fnv1a("kmeans"));
  const Tensor rows = draw_rows(ctx, x, std::min(x.rows(), options.start_rows), draws);
  return Start(ctx, rows, draws).centroids(options.clusters);
}

struct Assignment {
  std::vector<int32_t> labels;
  std::vector<float> distance;
  double inertia;
};

Assignment assign(Context& ctx, Tensor x, std::vector<float>& centroids) {
  ScratchScope scope(ctx.acts);
  const int64_t T = x.rows(), C = x.width();
  const auto K = static_cast<int64_t>(centroids.size()) / C;
  const NearestOut out = nearest(ctx, x, Tensor(centroids.data(), {K, C}));
  const int32_t* label = out.label.as<int32_t>();
  Assignment a{{label, label + T}, {out.distance.f32(), out.distance.f32() + T}, 0};
  a.inertia = std::accumulate(a.distance.begin(), a.distance.end(), 0.0);
  if (!std::isfinite(a.inertia))
    fail(Kind::input, "k-means: values that are not finite in {} (expected numbers)",
         text(x.shape));
  return a;
}

std::vector<int64_t> sizes_of(const Assignment& a, int64_t clusters) {
  std::vector<int64_t> sizes(static_cast<size_t>(clusters));
  for (int32_t label : a.labels) ++sizes[label];
  return sizes;
}

// Gives each empty cluster the row that is farthest from its centroid.
void fill_empty(Assignment& a, std::vector<int64_t>& sizes) {
  for (size_t k = 0; k < sizes.size(); ++k) {
    if (sizes[k] > 0) continue;
    const auto far = std::max_element(a.distance.begin(), a.distance.end()) - a.distance.begin();
    if (a.distance[far] == 0) return;  // fewer different rows than clusters
    --sizes[a.labels[far]];
    ++sizes[k];
    a.labels[far] = static_cast<int32_t>(k);
    a.distance[far] = 0;
  }
}

// Means of the clusters; those that stay empty keep their centroid.
void update(Tensor x, const Assignment& a, const std::vector<int64_t>& sizes,
            std::vector<float>& centroids) {
  const int64_t T = x.rows(), C = x.width();
  std::vector<double> sums(centroids.size());
  cpu::parallel_for(C, kColumns, [&](int64_t begin, int64_t end) {
    for (int64_t t = 0; t < T; ++t)
      for (int64_t c = begin; c < end; ++c) sums[a.labels[t] * C + c] += x.row(t)[c];
  });
  for (size_t i = 0; i < centroids.size(); ++i)
    if (const int64_t size = sizes[i / C])
      centroids[i] = static_cast<float>(sums[i] / static_cast<double>(size));
}

}  // namespace

Kmeans kmeans(Context& ctx, Tensor x, const KmeansOptions& options) {
  const int64_t T = x.rows();
  CHECK(options.clusters >= 1 && options.start_rows >= options.clusters,
        "k-means: {} clusters from {} rows", options.clusters, options.start_rows);
  if (T < options.clusters)
    fail(Kind::input, "k-means: {} rows (expected at least one for each of {} clusters)", T,
         options.clusters);
  Kmeans out{start(ctx, x, options), {}, {}};
  Assignment a = assign(ctx, x, out.centroids);
  out.inertia.push_back(a.inertia);
  for (int i = 0; i < options.iterations; ++i) {
    std::vector<int64_t> sizes = sizes_of(a, options.clusters);
    fill_empty(a, sizes);
    update(x, a, sizes, out.centroids);
    a = assign(ctx, x, out.centroids);
    out.inertia.push_back(a.inertia);
    const double before = out.inertia[out.inertia.size() - 2];
    if (before - a.inertia <= options.tolerance * before) break;
  }
  out.labels = std::move(a.labels);
  return out;
}

}  // namespace sft
