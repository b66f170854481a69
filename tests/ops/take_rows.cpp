#include <algorithm>

#include "autograd/functions.h"
#include "tests/op_spec.h"

namespace sft {
namespace {

// Every third frame of each utterance, so that a pack takes what its utterances take alone. They
// outlive the tape of a run, which is over when the next one begins.
std::span<const int32_t> rows_of(const Case& c) {
  static std::vector<int32_t> rows;
  rows.clear();
  for (int b = 0; b < c.segments().batch(); ++b)
    for (int32_t t = 0; t < c.segments().length(b); t += 3)
      rows.push_back(c.segments().starts[b] + t);
  return rows;
}

const std::vector<Case> kCases = {{.frames = {1}, .dims = {48}},
                                  {.frames = {7, 1, 33}, .dims = {33}},
                                  {.frames = {3, 40}, .dims = {264}},
                                  {.frames = {}, .dims = {8}},
                                  {.frames = {812, 399, 389}, .dims = {768}, .bench = true}};

Cost copy_cost(const Case& c, double share) {
  return {.bytes = 8 * share * static_cast<double>(c.T() * c.dims[0]), .flops = 0};
}

const RegisterOp take(OpSpec{
    .name = "take_rows",
    .cases = kCases,
    .inputs = [](const Case& c, Fill& fill) -> std::vector<Array> {
      return {fill.frames(c, c.dims[0])};
    },
    .oracle = [](std::span<const Array> in, const Case& c) -> std::vector<Array> {
      const auto rows = rows_of(c);
      const int64_t C = c.dims[0];
      Array y{.shape = {static_cast<int64_t>(rows.size()), C}, .data = {}};
      for (const int32_t row : rows)
        for (int64_t i = 0; i < C; ++i) y.data.push_back(in[0].at(row, i));
      return {y};
    },
    .run = [](Tape& t, std::span<const Var> in, const Case& c) -> std::vector<Var> {
      return {take_rows(t, in[0], rows_of(c))};
    },
    .cost = [](const Case& c) { return copy_cost(c, 1.0 / 3); },
    .cuda = true,
    .packs = false,  // its rows are no frames
});

const RegisterOp mask(OpSpec{
    .name = "mask_spans",
    .cases = kCases,
    .inputs = [](const Case& c, Fill& fill) -> std::vector<Array> {
      return {fill.frames(c, c.dims[0]), fill.normal({c.dims[0]})};
    },
    .oracle = [](std::span<const Array> in, const Case& c) -> std::vector<Array> {
      Array y = in[0];
      for (const int32_t row : rows_of(c))
        for (int64_t i = 0; i < c.dims[0]; ++i) y.at(row, i) = in[1].data[i];
      return {y};
    },
    .run = [](Tape& t, std::span<const Var> in, const Case& c) -> std::vector<Var> {
      return {mask_spans(t, in[0], in[1], rows_of(c))};
    },
    .cost = [](const Case& c) { return copy_cost(c, 1); },
    .cuda = true,
    .terms = 17,
});

}  // namespace
}  // namespace sft
