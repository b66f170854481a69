#include "train/kmeans.h"

#include <omp.h>

#include <cmath>
#include <set>

#include "engine/ops/nearest.h"
#include "tests/doctest.h"
#include "tests/op_spec.h"

using namespace sft;

namespace {

// [T, C] in memory that lives as long as this.
struct Rows {
  Rows(int64_t T, int64_t C) : data(static_cast<size_t>(T * C)), T(T), C(C) {}
  Tensor tensor() { return Tensor(data.data(), {T, C}); }
  float* row(int64_t t) { return data.data() + t * C; }
  std::vector<float> data;
  int64_t T, C;
};

Rows normals(int64_t T, int64_t C, uint64_t seed = 5) {
  Rows x(T, C);
  Draws draws(seed, 0, 0, fnv1a("rows"));
  for (float& v : x.data) v = static_cast<float>(draws.normal());
  return x;
}

Kmeans run(Rows& x, const KmeansOptions& options) {
  OpRun op(/*poison=*/true);
  return kmeans(op.ctx, x.tensor(), options);
}

std::vector<int32_t> nearest_labels(Rows& x, std::vector<float> centroids) {
  OpRun op(/*poison=*/true);
  const auto K = static_cast<int64_t>(centroids.size()) / x.C;
  const NearestOut out = nearest(op.ctx, x.tensor(), Tensor(centroids.data(), {K, x.C}));
  return {out.label.as<int32_t>(), out.label.as<int32_t>() + x.T};
}

// ---- the oracle: plain loops in double

struct Plain {
  std::vector<int32_t> labels;
  double inertia = 0;
};

Plain plain_assign(Rows& x, const std::vector<double>& centroids) {
  Plain out;
  for (int64_t t = 0; t < x.T; ++t) {
    double least = INFINITY;
    int32_t label = 0;
    for (size_t k = 0; k < centroids.size() / x.C; ++k) {
      double sum = 0;
      for (int64_t c = 0; c < x.C; ++c) sum += std::pow(x.row(t)[c] - centroids[k * x.C + c], 2);
      if (sum < least) least = sum, label = static_cast<int32_t>(k);
    }
    out.labels.push_back(label);
    out.inertia += least;
  }
  return out;
}

std::vector<double> plain_means(Rows& x, const std::vector<int32_t>& labels, size_t clusters) {
  std::vector<double> sums(clusters * x.C), sizes(clusters);
  for (int64_t t = 0; t < x.T; ++t) {
    ++sizes[labels[t]];
    for (int64_t c = 0; c < x.C; ++c) sums[labels[t] * x.C + c] += x.row(t)[c];
  }
  for (size_t i = 0; i < sums.size(); ++i) sums[i] /= sizes[i / x.C];
  return sums;
}

}  // namespace

TEST_CASE("kmeans: nearest gives the label of the plain loop, and the lowest of equals") {
  Rows x = normals(203, 39);
  Rows centroids = normals(100, 39, 6);
  const std::vector<double> wide(centroids.data.begin(), centroids.data.end());
  EXPECT(nearest_labels(x, centroids.data) == plain_assign(x, wide).labels);
  for (int64_t k : {3, 19, 35, 64})  // the same lane of a vector, and others
    std::copy_n(centroids.row(77), 39, centroids.row(k));
  for (int64_t t = 0; t < x.T; ++t) std::copy_n(centroids.row(77), 39, x.row(t));
  EXPECT(nearest_labels(x, centroids.data) == std::vector<int32_t>(203, 3));
}

TEST_CASE("kmeans: iterations are Lloyd's, by the plain loop") {
  Rows x = normals(700, 5);
  const KmeansOptions options{.clusters = 9, .iterations = 0, .tolerance = 0};
  const Kmeans start = run(x, options);
  std::vector<double> centroids(start.centroids.begin(), start.centroids.end());
  for (int iterations = 0; iterations < 6; ++iterations) {
    const Plain expected = plain_assign(x, centroids);
    const Kmeans got = run(x, {.clusters = 9, .iterations = iterations, .tolerance = -1});
    EXPECT(got.labels == expected.labels);
    REQUIRE(got.inertia.size() == static_cast<size_t>(iterations) + 1);
    EXPECT(std::abs(got.inertia.back() / expected.inertia - 1) < 1e-5);
    centroids = plain_means(x, expected.labels, 9);
  }
}

TEST_CASE("kmeans: the start picks different rows of the data") {
  Rows x = normals(500, 3);
  const Kmeans start = run(x, {.clusters = 40, .iterations = 0, .start_rows = 100});
  std::set<std::vector<float>> rows, chosen;
  for (int64_t t = 0; t < x.T; ++t) rows.insert({x.row(t), x.row(t) + 3});
  for (size_t k = 0; k < 40; ++k) {
    const auto first = start.centroids.begin() + static_cast<int64_t>(k) * 3;
    chosen.insert({first, first + 3});
    EXPECT(rows.count({first, first + 3}) == 1);
  }
  EXPECT(chosen.size() == 40);
  EXPECT(run(x, {.clusters = 40, .iterations = 0, .seed = 1}).centroids !=
         run(x, {.clusters = 40, .iterations = 0, .seed = 2}).centroids);
}

TEST_CASE("kmeans: well separated groups are found, whatever the seed") {
  Rows x = normals(900, 4);
  for (int64_t t = 0; t < x.T; ++t) {
    for (int c = 0; c < 4; ++c) x.row(t)[c] *= 0.1f;
    x.row(t)[t % 9 % 3] += static_cast<float>(5 * (1 + t % 9));
  }
  for (uint64_t seed = 0; seed < 5; ++seed) {
    const Kmeans found = run(x, {.clusters = 9, .seed = seed});
    for (int64_t t = 9; t < x.T; ++t) REQUIRE(found.labels[t] == found.labels[t % 9]);
    EXPECT(found.inertia.back() < 900 * 4 * 0.011);
  }
}

TEST_CASE("kmeans: inertia never rises, the labels are those of the final centroids") {
  Rows x = normals(3000, 13);
  const Kmeans found = run(x, {.clusters = 50, .iterations = 30, .tolerance = 0});
  for (size_t i = 1; i < found.inertia.size(); ++i)
    EXPECT(found.inertia[i] <= found.inertia[i - 1] * (1 + 1e-7));
  EXPECT(found.inertia.size() > 5);
  EXPECT(found.labels == nearest_labels(x, found.centroids));
}

TEST_CASE("kmeans: empty clusters are filled, too few different rows are no trap") {
  // One far row, and start rows that may miss it: a start of copies leaves clusters empty.
  Rows x(64, 2);
  for (int64_t t = 0; t < x.T; ++t) x.row(t)[0] = static_cast<float>(t / 32), x.row(t)[1] = 1;
  const Kmeans two = run(x, {.clusters = 2});
  EXPECT(two.inertia.back() == 0);
  const Kmeans five = run(x, {.clusters = 5});
  EXPECT(five.inertia.back() == 0);
  for (float v : five.centroids) EXPECT(std::isfinite(v));

  Rows spread = normals(2000, 2);
  for (int64_t t = 0; t < 1900; ++t) spread.row(t)[0] = spread.row(t)[1] = 0;
  const KmeansOptions few{.clusters = 20, .iterations = 10, .tolerance = 0, .start_rows = 20};
  const Kmeans start = run(spread, {.clusters = 20, .iterations = 0, .start_rows = 20});
  const auto used = [](const Kmeans& k) {
    return std::set(k.labels.begin(), k.labels.end()).size();
  };
  EXPECT(used(start) < 10);  // the start rows are nearly all the same
  EXPECT(used(run(spread, few)) == 20);
}

TEST_CASE("kmeans: the same bits for any number of threads") {
  Rows x = normals(4000, 39);
  const KmeansOptions options{.clusters = 30, .iterations = 5, .tolerance = 0};
  const int before = omp_get_max_threads();
  omp_set_num_threads(1);
  const Kmeans one = run(x, options);
  omp_set_num_threads(3);
  const Kmeans three = run(x, options);
  omp_set_num_threads(before);
  EXPECT(one.centroids == three.centroids);
  EXPECT(one.labels == three.labels);
  EXPECT(one.inertia == three.inertia);
}

TEST_CASE("kmeans: bad input") {
  Rows x = normals(10, 3);
  const auto error = [&](int64_t clusters) {
    return test::error_of([&] { run(x, {.clusters = clusters}); });
  };
  EXPECT(error(11).message == "k-means: 10 rows (expected at least one for each of 11 clusters)");
  for (float bad : {NAN, INFINITY}) {
    x.row(7)[1] = bad;
    EXPECT(error(3).kind == Kind::input);
  }
}
