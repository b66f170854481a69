#include "engine/ops/rel_table.h"

#include "autograd/functions.h"
#include "tests/doctest.h"
#include "tests/op_spec.h"

namespace sft {
namespace {

// Distances of R to either side fall into `rows` buckets; the last one stays empty.
const std::vector<int32_t>& buckets(const Case& c) {
  static std::vector<int32_t> list;
  const int64_t rows = c.dims[0], R = c.dims[2];
  list.clear();
  CHECK(rows > 1, "rel_table: {} rows leave no bucket", rows);
  for (int64_t d = -R; d <= R; ++d) list.push_back(static_cast<int32_t>((d * d + R) % (rows - 1)));
  return list;
}

// dims: rows, H, R.
std::vector<Array> oracle(std::span<const Array> in, const Case& c) {
  const std::vector<int32_t>& list = buckets(c);
  const auto distances = static_cast<int64_t>(list.size());
  Array table{.shape = {c.dims[1], distances}, .data = {}};
  for (int64_t h = 0; h < c.dims[1]; ++h)
    for (const int32_t bucket : list) table.data.push_back(in[0].at(bucket, h));
  return {table};
}

const RegisterOp rel_table_op(OpSpec{
    .name = "rel_table",
    .cases = {{.dims = {2, 1, 0}},
              {.dims = {7, 3, 33}},
              {.dims = {320, 12, 400}},
              {.dims = {320, 12, 800}, .bench = true}},
    .inputs =
        [](const Case& c, Fill& fill) {
          return std::vector<Array>{fill.normal({c.dims[0], c.dims[1]})};
        },
    .oracle = oracle,
    .run = [](Tape& t, std::span<const Var> in, const Case& c) -> std::vector<Var> {
      return {rel_table(t, in[0], buckets(c))};
    },
    .cost =
        [](const Case& c) {
          return Cost{.bytes = 8.0 * c.dims[1] * (2 * c.dims[2] + 1), .flops = 0};
        },
    .cuda = true,
    .terms = 67,
    .roundings = 0,  // of parameters: f32
    .gradient_roundings = 0,
    .packs = false,
});

}  // namespace

TEST_CASE("rel_table: what it refuses") {
  OpRun run(true);
  const Tensor embedding = run.ctx.activation({4, 2});
  const auto message = [&](std::vector<int32_t> list) {
    return test::error_of([&] { rel_table_forward(run.ctx, embedding, list); }).message;
  };
  EXPECT(message({0, 4, 1}).find("bucket 4 of 4") != std::string::npos);
  EXPECT(message({0, -1, 1}).find("bucket -1 of 4") != std::string::npos);
}

}  // namespace sft
