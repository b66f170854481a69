#include "engine/ops/nearest.h"

#include <algorithm>
#include <cmath>

#include "tests/op_spec.h"

namespace sft {
namespace {

// All distances, and the one to the nearest centroid; which one it is: tests/train/kmeans.cpp.
std::vector<Array> oracle(std::span<const Array> in, const Case&) {
  const Array &x = in[0], &centroids = in[1];
  Array out{.shape = {x.shape[0]}, .data = {}, .per_frame = true};
  Array all{.shape = {x.shape[0], centroids.shape[0]}, .data = {}, .per_frame = true};
  for (int64_t t = 0; t < x.shape[0]; ++t) {
    double least = INFINITY;
    for (int64_t k = 0; k < centroids.shape[0]; ++k) {
      double sum = 0;
      for (int64_t c = 0; c < x.shape[1]; ++c) sum += std::pow(x.at(t, c) - centroids.at(k, c), 2);
      all.data.push_back(sum);
      least = std::min(least, sum);
    }
    out.data.push_back(least);
  }
  return {out, all};
}

const RegisterOp nearest_spec(OpSpec{
    .name = "nearest",
    .cases = {{.frames = {1}, .dims = {1, 1}},
              {.frames = {7, 1, 33}, .dims = {100, 39}},
              {.frames = {31, 130}, .dims = {33, 5}},
              {.frames = {}, .dims = {8, 8}},
              {.frames = {8000}, .dims = {100, 39}, .bench = true},
              {.frames = {4000}, .dims = {500, 768}, .bench = true}},
    .inputs =
        [](const Case& c, Fill& fill) {
          std::vector<Array> in{fill.frames(c, c.dims[1], 2), fill.normal({c.dims[0], c.dims[1]})};
          for (Array& a : in) a.gradient = false;
          return in;
        },
    .oracle = oracle,
    .run = [](Tape& t, std::span<const Var> in, const Case&) -> std::vector<Var> {
      return {Var{nearest(t.ctx, in[0], in[1]).distance},
              Var{squared_distances(t.ctx, in[0], in[1])}};
    },
    .cost =
        [](const Case& c) {
          const double T = static_cast<double>(c.T()), K = static_cast<double>(c.dims[0]);
          const double C = static_cast<double>(c.dims[1]);
          return Cost{.bytes = 4 * (T + K) * C, .flops = 2 * T * K * C};
        },
    .terms = 768,
});

}  // namespace
}  // namespace sft
