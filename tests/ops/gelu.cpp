#include "autograd/functions.h"
#include "tests/op_spec.h"
#include "tests/ops/conv.h"

namespace sft {
namespace {

// inputs: x, or x and a residual.
std::vector<Array> oracle(std::span<const Array> in, const Case&) {
  Array y = in[0];
  for (size_t i = 0; i < y.data.size(); ++i)
    y.data[i] = exact_gelu(y.data[i]) + (in.size() > 1 ? in[1].data[i] : 0);
  return {y};
}

Cost cost(const Case& c) {
  const double n = static_cast<double>(c.T() * c.dims[0]);
  return {.bytes = 12 * n, .flops = 20 * n};
}

const RegisterOp plain(OpSpec{
    .name = "gelu",
    .cases = {{.frames = {1}, .dims = {3}}, {.frames = {7, 1, 33}, .dims = {33}}},
    .inputs = [](const Case& c, Fill& fill) -> std::vector<Array> {
      return {fill.frames(c, c.dims[0])};
    },
    .oracle = oracle,
    .run = [](Tape& t, std::span<const Var> in, const Case&) -> std::vector<Var> {
      return {gelu(t, in[0])};
    },
    .cost = cost,
    .cuda = true,
});

const RegisterOp with_residual(OpSpec{
    .name = "gelu with residual",
    .cases = {{.frames = {1}, .dims = {8}},
              {.frames = {3, 14}, .dims = {520}},
              {.frames = {}, .dims = {8}},
              {.frames = {812, 399, 389}, .dims = {768}, .bench = true}},
    .inputs = [](const Case& c, Fill& fill) -> std::vector<Array> {
      return {fill.frames(c, c.dims[0]), fill.frames(c, c.dims[0])};
    },
    .oracle = oracle,
    .run = [](Tape& t, std::span<const Var> in, const Case&) -> std::vector<Var> {
      return {gelu(t, in[0], in[1])};
    },
    .cost = cost,
    .cuda = true,
});

}  // namespace
}  // namespace sft
