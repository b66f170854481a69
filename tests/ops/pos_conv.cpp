#include <cmath>

#include "autograd/functions.h"
#include "tests/doctest.h"
#include "tests/ops/conv.h"

namespace sft {
namespace {

// dims: C, groups, K.
Array convolve(std::span<const Array> in, const Case& c) {
  const Array &x = in[0], &w = in[1];
  const int64_t C = c.dims[0], K = c.dims[2], channels = C / c.dims[1];
  const Segments segments = c.segments();
  Array y = x;
  for (int b = 0; b < segments.batch(); ++b)
    for (int64_t t = 0; t < segments.length(b); ++t)
      for (int64_t o = 0; o < C; ++o) {
        double sum = in[2].data[o];
        for (int64_t j = 0; j < K; ++j) {
          const int64_t from = t + j - K / 2;
          if (from < 0 || from >= segments.length(b)) continue;
          for (int64_t i = 0; i < channels; ++i)
            sum += w.data[(o * channels + i) * K + j] *
                   x.at(segments.starts[b] + from, o / channels * channels + i);
        }
        y.at(segments.starts[b] + t, o) = sum;
      }
  return y;
}

std::vector<Array> inputs(const Case& c, Fill& fill) {
  const int64_t C = c.dims[0], channels = C / c.dims[1], K = c.dims[2];
  const double deviation = 1 / std::sqrt(static_cast<double>(channels * K));
  return {fill.frames(c, C), fill.normal({C, channels, K}, deviation), fill.normal({C})};
}

Cost cost(const Case& c) {
  const double n = static_cast<double>(c.T() * c.dims[0]);
  return {.bytes = 8 * n, .flops = 2 * n * c.dims[0] / c.dims[1] * c.dims[2]};
}

const RegisterOp pos_conv_op(OpSpec{
    .name = "pos_conv",
    .cases = {{.frames = {1}, .dims = {6, 2, 4}},
              {.frames = {7, 1, 33}, .dims = {12, 3, 19}},  // odd: no step is dropped
              {.frames = {31, 130, 2}, .dims = {48, 1, 16}},
              {.frames = {40, 5}, .dims = {34, 2, 40}},
              {.frames = {}, .dims = {8, 2, 4}},
              {.frames = {150}, .dims = {32, 2, 4}},  // edges of the tiles of a GPU
              {.frames = {3, 10}, .dims = {136, 2, 3}},
              {.frames = {100, 9}, .dims = {80, 1, 7}},  // in 16 bits each size of words
              {.frames = {20, 110}, .dims = {90, 1, 5}},
              {.frames = {1030}, .dims = {2, 1, 2}},  // a split sum
              {.frames = {250, 250, 250, 250}, .dims = {768, 16, 128}, .bench = true},
              {.frames = {250, 250, 250, 250}, .dims = {1024, 16, 128}, .bench = true}},
    .inputs = inputs,
    .oracle = [](std::span<const Array> in, const Case& c) -> std::vector<Array> {
      Array y = convolve(in, c);
      for (size_t i = 0; i < y.data.size(); ++i) y.data[i] = in[0].data[i] + exact_gelu(y.data[i]);
      return {y};
    },
    .run = [](Tape& t, std::span<const Var> in, const Case& c) -> std::vector<Var> {
      return {pos_conv(t, in[0], in[1], in[2], static_cast<int>(c.dims[1]), c.segments())};
    },
    .cost = cost,
    .cuda = true,
    .narrow = {Math::fast16},
    .terms = 768,
    .gradient_roundings = 3,  // pre (in the slope), dpre, dx
});

// One of data2vec's stack.
const RegisterOp grouped_conv_op(OpSpec{
    .name = "grouped_conv",
    .cases = {{.frames = {1}, .dims = {6, 2, 4}},
              {.frames = {7, 1, 33}, .dims = {12, 3, 19}},
              {.frames = {31, 130, 2}, .dims = {48, 1, 19}},
              {.frames = {40, 5}, .dims = {34, 2, 40}},
              {.frames = {}, .dims = {8, 2, 4}},
              {.frames = {250, 250, 250, 250}, .dims = {768, 16, 19}, .bench = true}},
    .inputs = inputs,
    .oracle = [](std::span<const Array> in, const Case& c) -> std::vector<Array> {
      return {convolve(in, c)};
    },
    .run = [](Tape& t, std::span<const Var> in, const Case& c) -> std::vector<Var> {
      return {grouped_conv(t, in[0], in[1], in[2], static_cast<int>(c.dims[1]), c.segments())};
    },
    .cost = cost,
    .cuda = true,
    .narrow = {Math::fast16},
    .terms = 768,
});

// dims as above, at sizes of real models that the oracle is too slow for.
void check_against_cpu(const Case& c) {
  Fill fill(21);
  const int64_t C = c.dims[0], channels = C / c.dims[1], K = c.dims[2];
  const std::vector<Array> in{fill.frames(c, C),
                              fill.normal({C, channels, K}, 1 / std::sqrt(1.0 * channels * K)),
                              fill.normal({C})};
  const Array dy = fill.frames(c, C);
  const auto op = [&](Tape& t, std::span<const Var> v) {
    return pos_conv(t, v[0], v[1], v[2], static_cast<int>(c.dims[1]), c.segments());
  };
  for (const double d : distances_from_cpu(Math::exact, in, dy, op)) EXPECT(d < 1e-5);
  // x, dy and the weights are rounded as well; the rms of dweight is that of all taps, most of
  // which meet few frames.
  for (const double d : distances_from_cpu(Math::bf16, in, dy, op)) EXPECT(d < 10 * 0x1p-8);
}

}  // namespace

TEST_CASE("pos_conv: on a device as on the CPU") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  check_against_cpu({.frames = {40, 3}, .dims = {48, 1, 128}});  // of a base model, one group
  check_against_cpu({.frames = {130}, .dims = {128, 2, 8}});     // of a large one, two
  check_against_cpu({.frames = {60}, .dims = {96, 2, 19}});
}

}  // namespace sft
