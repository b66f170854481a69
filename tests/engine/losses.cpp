// What is said of an update besides its gradients: the sum of its losses, and how many rows are
// right.
#include <algorithm>
#include <cmath>

#include "engine/cuda/emulator/thread_order.h"
#include "engine/ops/add_losses.h"
#include "engine/ops/right_rows.h"
#include "engine/transfer.h"
#include "tests/doctest.h"
#include "tests/op_spec.h"

using namespace sft;

TEST_CASE("add_losses: adds to what is there, in double, in a fixed order") {
  for (const Where where : everywhere()) {
    OpRun run(true, 0, 0, where);
    Fill fill(11);
    for (const int64_t n : {0, 1, 33, 700}) {
      const Array losses = fill.normal({n}), weights = fill.normal({n});
      const std::vector<float> factors(weights.data.begin(), weights.data.end());
      double expected = 3;
      for (int64_t i = 0; i < n; ++i) expected += losses.data[i] * weights.data[i];
      const Tensor placed = run.write(losses, Dtype::f32);
      const auto total = [&] {
        const double start = 3;
        const Tensor to = run.ctx.activation({1}, Dtype::f64);
        write(run.ctx, &start, to);
        add_losses(run.ctx, placed, factors, to);
        double sum;
        read(run.ctx, to, &sum);
        return sum;
      };
      const double got = total();
      EXPECT(got == doctest::Approx(expected).epsilon(1e-13));
      const cuda::emulator::OtherThreadOrder other;
      EXPECT(total() == got);
    }
  }
}

TEST_CASE("right_rows: the first of the largest logits is the label's") {
  for (const Where where : everywhere()) {
    OpRun run(true, 0, 0, where);
    Fill fill(12);
    for (const int64_t V : {1, 4, 31, 520}) {
      const int64_t N = 37;
      Array logits = fill.normal({N, V});
      std::vector<int32_t> labels(N);
      for (int64_t n = 0; n < N; ++n) {
        double* row = &logits.at(n, 0);
        for (int64_t v = 0; v < V; ++v) row[v] = std::round(row[v]);  // equal ones, and exact
        int64_t first = 0, last = 0;
        for (int64_t v = 1; v < V; ++v) {
          if (row[v] > row[first]) first = v;
          if (row[v] >= row[last]) last = v;
        }
        labels[n] = static_cast<int32_t>(n % 3 == 0 ? first : n % 3 == 1 ? last : V / 2);
      }
      logits.at(5, labels[5]) = std::nan("");
      const Array got =
          OpRun::read(right_rows(run.ctx, run.write(logits, run.ctx.compute()), labels));
      for (int64_t n = 0; n < N; ++n) {
        const double* row = &logits.at(n, 0);
        const bool right = n != 5 && std::max_element(row, row + V) - row == labels[n];
        EXPECT_MESSAGE(got.data[n] == (right ? 1 : 0), "row " << n << " of width " << V);
      }
    }
    EXPECT(right_rows(run.ctx, run.ctx.activation({0, 4}, run.ctx.compute()), {}).count() == 0);
  }
}
