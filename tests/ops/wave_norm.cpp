#include "engine/ops/wave_norm.h"

#include <cmath>

#include "tests/doctest.h"
#include "tests/op_spec.h"

namespace sft {
namespace {

void check_utterances(Where where) {
  const std::vector<int32_t> lengths{400, 719, 1};
  const SlotList list(lengths, 320);
  const Slots slots = list.view();
  Fill fill(2);
  Array samples = fill.normal({slots.rows()}, 0.01);
  for (double& x : samples.data) x = static_cast<float>(x + 0.5);  // an offset 50 times the signal
  OpRun run(/*poison=*/true, 0, 0, where);
  Tape tape(run.ctx);
  const Tensor wave = run.place(tape, std::vector<Array>{samples})[0];
  const double eps = 1e-7;
  const Array y = OpRun::read(wave_norm(run.ctx, wave, slots, eps));
  for (int b = 0; b < slots.batch(); ++b) {
    const double* x = samples.data.data() + slots.starts[b];
    double mean = 0, variance = 0;
    for (int i = 0; i < lengths[b]; ++i) mean += x[i] / lengths[b];
    for (int i = 0; i < lengths[b]; ++i) variance += (x[i] - mean) * (x[i] - mean) / lengths[b];
    for (int i = 0; i < slots.starts[b + 1] - slots.starts[b]; ++i) {
      const double expected = i < lengths[b] ? (x[i] - mean) / std::sqrt(variance + eps) : 0;
      const double ours = y.data[slots.starts[b] + i];
      EXPECT(std::abs(ours - expected) <= 1e-6 * std::abs(expected) + 1e-12);
      if (i >= lengths[b]) EXPECT(ours == 0);
    }
  }
}

void check_silence(Where where) {
  OpRun run(/*poison=*/true, 0, 0, where);
  Tape tape(run.ctx);
  const SlotList list(std::vector<int32_t>{500}, 320);
  const Array silence{.shape = {640}, .data = std::vector<double>(640)};
  const Array y = OpRun::read(
      wave_norm(run.ctx, run.place(tape, std::vector<Array>{silence})[0], list.view(), 1e-5));
  for (int i = 0; i < 640; ++i) EXPECT(y.data[i] == 0);
  const SlotList empty(std::vector<int32_t>{}, 320);
  EXPECT(wave_norm(run.ctx, run.ctx.activation({0}), empty.view(), 1e-5).count() == 0);
}

}  // namespace

TEST_CASE("wave_norm: each utterance over its own samples, tails of slots zero") {
  check_utterances({});
}

TEST_CASE("wave_norm: silence stays silence, no utterance is fine") { check_silence({}); }

TEST_CASE("wave_norm: the same on a device") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  check_utterances({Device::cuda, Math::exact});
  check_silence({Device::cuda, Math::bf16});
}

TEST_CASE("slots: rows of each convolution of the front end") {
  const std::vector<int32_t> lengths{400, 401, 719, 1200, 100};
  SlotList list(lengths, 320);
  const std::vector<std::pair<int, int>> convs{{10, 5}, {3, 2}, {3, 2}, {3, 2},
                                               {3, 2},  {2, 2}, {2, 2}};
  for (const auto& [kernel, stride] : convs) list = list.next(kernel, stride);
  const Slots slots = list.view();
  const std::vector<int32_t> starts{0, 2, 4, 7, 11, 12}, valid{1, 1, 1, 3, 0};
  EXPECT(std::vector<int32_t>(slots.starts.begin(), slots.starts.end()) == starts);
  EXPECT(std::vector<int32_t>(slots.valid.begin(), slots.valid.end()) == valid);
}

}  // namespace sft
