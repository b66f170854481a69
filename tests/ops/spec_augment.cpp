#include <algorithm>
#include <cmath>

#include "autograd/functions.h"
#include "engine/ops/spec_augment_plan.h"
#include "tests/doctest.h"
#include "tests/op_spec.h"

namespace sft {
namespace {

constexpr uint64_t kSeed = 1234;  // the harness's
constexpr uint32_t kUpdate = 3;

double kernel(double x) {
  const double A = -0.75, a = std::abs(x);
  if (a <= 1) return (A + 2) * a * a * a - (A + 3) * a * a + 1;
  return a < 2 ? A * a * a * a - 5 * A * a * a + 8 * A * a - 4 * A : 0;
}

// x [m, C] -> [n, C]
Array resample(const Array& x, int64_t n) {
  const int64_t m = x.shape[0], C = x.shape[1];
  Array y{.shape = {n, C}, .data = std::vector<double>(n * C)};
  for (int64_t t = 0; t < n; ++t) {
    const double p = (t + 0.5) * m / n - 0.5, f = std::floor(p);
    for (int k = -1; k <= 2; ++k) {
      const auto row = std::clamp<int64_t>(static_cast<int64_t>(f) + k, 0, m - 1);
      for (int64_t c = 0; c < C; ++c) y.at(t, c) += kernel(p - f - k) * x.at(row, c);
    }
  }
  return y;
}

Array rows(const Array& x, int64_t begin, int64_t end) {
  const int64_t C = x.shape[1];
  return {.shape = {end - begin, C},
          .data = {x.data.begin() + begin * C, x.data.begin() + end * C}};
}

// One utterance, with the draws that spec_augment.h documents.
Array augment(const Array& x, const SpecAugment& o, Draws draws) {
  const auto T = static_cast<uint32_t>(x.shape[0]), C = static_cast<uint32_t>(x.shape[1]);
  const auto w = static_cast<uint32_t>(o.time_warp);
  Array y = x;
  if (w > 0 && T > 2 * w) {
    const uint32_t c = w + draws.below(T - 2 * w), s = c - w + 1 + draws.below(2 * w);
    const Array left = resample(rows(x, 0, c), s), right = resample(rows(x, c, T), T - s);
    std::copy(left.data.begin(), left.data.end(), y.data.begin());
    std::copy(right.data.begin(), right.data.end(), y.data.begin() + left.data.size());
  }
  const auto mask = [&](int count, int width, uint32_t size, auto&& hide) {
    std::vector<uint32_t> widths;
    for (int i = 0; i < count; ++i) widths.push_back(draws.below(std::min<uint32_t>(width, size)));
    const uint32_t widest = count ? *std::max_element(widths.begin(), widths.end()) : 0;
    for (const uint32_t one : widths) {
      const uint32_t start = draws.below(size > widest + 1 ? size - widest : 1);
      for (uint32_t i = start; i < std::min(start + one, size); ++i) hide(i);
    }
  };
  mask(o.freq_masks, o.freq_width, C, [&](uint32_t c) {
    for (uint32_t t = 0; t < T; ++t) y.at(t, c) = 0;
  });
  mask(o.time_masks, o.time_width, T, [&](uint32_t t) {
    for (uint32_t c = 0; c < C; ++c) y.at(t, c) = 0;
  });
  return y;
}

std::vector<Array> oracle(const Array& x, const Case& c, const SpecAugment& options) {
  Array y = x;
  const Segments segments = c.segments();
  for (int b = 0; b < segments.batch(); ++b) {
    const Draws draws(kSeed, segments.utterances[b], kUpdate, fnv1a("specaugment"));
    const Array one = augment(rows(x, segments.starts[b], segments.starts[b + 1]), options, draws);
    std::copy(one.data.begin(), one.data.end(), y.data.begin() + segments.starts[b] * x.shape[1]);
  }
  return {y};
}

OpSpec spec(const char* name, SpecAugment options) {
  return {
      .name = name,
      .cases = {{.frames = {1}, .dims = {48}},
                {.frames = {7, 1, 33}, .dims = {33}},
                {.frames = {31, 10, 11, 130}, .dims = {70}, .first_utterance = 5},
                {.frames = {}, .dims = {8}},
                {.frames = {812, 399, 1204}, .dims = {768}, .bench = true}},
      .inputs = [](const Case& c, Fill& fill) -> std::vector<Array> {
        return {fill.frames(c, c.dims[0], 2)};
      },
      .oracle = [=](std::span<const Array> in, const Case& c) { return oracle(in[0], c, options); },
      .run = [=](Tape& t, std::span<const Var> in, const Case& c) -> std::vector<Var> {
        return {spec_augment(t, in[0], options, c.segments())};
      },
      .cost =
          [](const Case& c) {
            const double n = static_cast<double>(c.T() * c.dims[0]);
            return Cost{.bytes = 8 * n, .flops = 8 * n};
          },
      .cuda = true,
      .terms = 4,
      // y is rounded, and dx
      .roundings = 1,
      .gradient_roundings = 1,
  };
}

const RegisterOp usual(spec("spec_augment", {}));
const RegisterOp narrow(spec("spec_augment_narrow",
                             {.time_warp = 2, .freq_width = 9, .time_masks = 3, .time_width = 5}));
const RegisterOp warp(spec("spec_augment_warp", {.freq_masks = 0, .time_masks = 0}));
const RegisterOp masks(spec("spec_augment_masks", {.time_warp = 0, .time_width = 4}));

}  // namespace

TEST_CASE("spec_augment: bicubic resampling of squares, 5 points to 7") {
  const std::vector<double> x{0, 1, 4, 9, 16};
  const std::vector<double> expected{-0.078717, 0.265306,  1.682216, 4,
                                     7.046647,  12.463557, 16.55102};
  for (int64_t t = 0; t < 7; ++t) {
    const ResampleTaps taps = resample_taps(t, 7, 5);
    double y = 0;
    for (int k = 0; k < 4; ++k) y += taps.weights[k] * x[taps.rows[k]];
    EXPECT(std::abs(y - expected[t]) < 2e-6);
  }
  for (int64_t t = 0; t < 5; ++t) {
    const ResampleTaps taps = resample_taps(t, 5, 5);
    EXPECT(taps.rows[1] == t);
    EXPECT(std::ranges::equal(taps.weights, std::array<float, 4>{0, 1, 0, 0}));
  }
}

TEST_CASE("spec_augment: another update, another plan; never everything") {
  const SegmentList list(std::vector<int32_t>{60, 8});
  std::vector<std::vector<int32_t>> plans;
  for (uint32_t update = 0; update < 50; ++update) {
    OpRun run(/*poison=*/true, 5, update);
    const Tensor x = run.ctx.activation({68, 20});
    std::fill_n(x.f32(), x.count(), 1.0f);
    const SpecAugmentOut out = spec_augment_forward(run.ctx, x, {}, list.view());
    const int32_t* plan = out.plan.as<int32_t>();
    plans.emplace_back(plan, plan + out.plan.count());
    const SpecAugment one{.freq_masks = 1, .time_masks = 1};
    const Tensor y = spec_augment_forward(run.ctx, x, one, list.view()).y;
    for (const int begin : {0, 60}) {
      const float *first = y.row(begin), *last = y.row(begin ? 68 : 60);
      EXPECT(std::any_of(first, last, [](float v) { return v != 0; }));
    }
  }
  std::sort(plans.begin(), plans.end());
  EXPECT(std::adjacent_find(plans.begin(), plans.end()) == plans.end());
}

}  // namespace sft
