// LSTM layers by a library, and who computes when it is not what it should be.
#include "engine/ops/lstm_library.h"

#include <algorithm>
#include <cstdlib>

#include "engine/cuda/driver.h"
#include "engine/cuda/emulator/lstm_faults.h"
#include "engine/cuda/gemm_choices.h"
#include "engine/step_memory.h"
#include "tests/doctest.h"
#include "tests/op_spec.h"

namespace sft::cuda {
namespace {

using emulator::LstmFault;

bool skipped() {
  const std::string why = no_gpu();
  if (!why.empty()) test::skip(why);
  return !why.empty();
}

struct Faulty {
  explicit Faulty(LstmFault fault) { emulator::lstm_library_has(fault); }
  ~Faulty() { emulator::lstm_library_has(LstmFault::none); }
};

// A device of its own that computes a layer of 4 units over 3 inputs, in both directions.
struct Rig {
  std::unique_ptr<Runtime> gpu = std::make_unique<Runtime>(open_driver());
  StepMemory memory{gpu.get()};
  Prepared prepared{gpu.get()};
  Dtype type = Dtype::f32;
  Context ctx = memory.context(prepared, Math::exact, /*dry=*/true);

  // Forward, over utterances of these lengths.
  void layer(Context& ctx, std::vector<int32_t> lengths) {
    const SegmentList list(lengths);
    const Tensor x = ctx.activation({list.view().total(), 3}, type);
    std::vector<LstmWeights> weights;
    for (int d = 0; d < 2; ++d)
      weights.push_back({ctx.activation({16, 3}), ctx.activation({16, 4}), ctx.activation({16}),
                         ctx.activation({16})});
    if (!ctx.dry) ctx.gpu->fill(x.data, 0, x.bytes());
    const LstmOut out = sft::lstm_forward(ctx, x, weights, list.view());
    EXPECT(!!out.saved ==
           (list.view().total() > 0 && gpu->lstm_choices().made.begin()->second.library));
  }
  std::string line() {
    layer(ctx, {3, 1});
    REQUIRE(lstm_lines(*gpu).size() == 1);
    return lstm_lines(*gpu)[0];
  }
};

std::string line_with(LstmFault fault) {
  const Faulty faulty(fault);
  return Rig().line();
}

const std::string kOurs = "lstm 3 -> 2 x 4, f32: our own kernels ";

// Every case of the spec that is no bench case, with who computes its layers told beforehand;
// empty: it is found out.
int run_spec(const std::string& by) {
  const auto spec = std::ranges::find(op_specs(), "lstm", &OpSpec::name);
  int by_library = 0;
  for (const Where where : everywhere())
    for (const Case& c : spec->cases) {
      if (where.device == Device::cpu || c.bench || !c.T()) continue;
      const LstmShape shape{where.compute(), c.dims[0], c.dims[1], c.dims[2]};
      const auto recorded = [&](const std::string& by) {
        shared_gpu().use_gemm_choices({.by = "", .algorithms = {}, .lstms = {{shape, by}}});
      };
      recorded(by);
      for (const std::string& wrong : check_case(*spec, c, kSpecSeed, where))
        EXPECT_MESSAGE(false, fmt::format("{} {}: {}", name(shape.type), by, wrong));
      by_library += shared_gpu().lstm_choices().made.at(shape).library;
      recorded("");
    }
  return by_library;
}

}  // namespace

TEST_CASE("lstm library: all cases by our own kernels, and by the library") {
  if (skipped()) return;
  EXPECT(run_spec(kOwnKernels) == 0);
  if (emulator::lstm_library_has) EXPECT(run_spec("") == 12);
}

TEST_CASE("lstm library: one that is wrong does not compute, and the line says why") {
  if (skipped()) return;
  if (!emulator::lstm_library_has) return test::skip("needs the emulator");
  EXPECT(line_with(LstmFault::none) ==
         "lstm 3 -> 2 x 4, f32: the emulator's twin (agrees with our own kernels)");
  EXPECT(line_with(LstmFault::absent) == kOurs + "(no library: no such library here)");
  EXPECT(line_with(LstmFault::failing) == kOurs + "(the emulator's twin: it does not work today)");
  EXPECT(line_with(LstmFault::wrong).starts_with(kOurs + "(the emulator's twin: differs by "));
  EXPECT(line_with(LstmFault::tf32).starts_with(kOurs + "(the emulator's twin: differs by "));
  EXPECT(line_with(LstmFault::unsteady) ==
         kOurs + "(the emulator's twin: has other bits the second time)");
  setenv("SFT_CUDNN", "off", 1);
  EXPECT(line_with(LstmFault::none) == kOurs + "(SFT_CUDNN=off)");
  unsetenv("SFT_CUDNN");
}

TEST_CASE("lstm library: bf16 is allowed what bf16 rounds") {
  if (skipped()) return;
  if (!emulator::lstm_library_has) return test::skip("needs the emulator");
  const auto line = [](LstmFault fault) {
    const Faulty faulty(fault);
    Rig rig;
    rig.type = Dtype::bf16;
    return rig.line();
  };
  EXPECT(line(LstmFault::none).find("bf16: the emulator's twin (agrees") != std::string::npos);
  EXPECT(line(LstmFault::wrong).find("0.031 is allowed") != std::string::npos);
}

TEST_CASE("lstm library: first met inside a step, our own kernels compute") {
  if (skipped()) return;
  Rig rig;
  rig.layer(rig.ctx, {});  // no frames: not asked for
  EXPECT(lstm_lines(*rig.gpu).empty());
  StepScope step(rig.gpu.get());
  EXPECT(rig.line() == kOurs + "(the layer was first met inside a step)");
}

TEST_CASE("lstm library: steps around its layers are replayed, whatever the lengths") {
  if (skipped()) return;
  Rig rig;
  rig.line();
  rig.memory.commit();
  const auto replayed = [&](std::vector<int32_t> lengths) {
    const int64_t before = rig.gpu->step_counts().replayed;
    Context ctx = rig.memory.context(rig.prepared, Math::exact, false);
    StepScope step(rig.gpu.get());
    rig.layer(ctx, lengths);
    step.end();
    return rig.gpu->step_counts().replayed > before;
  };
  EXPECT(!replayed({3, 1}));
  EXPECT(!replayed({3, 1}));  // captured
  EXPECT(replayed({3, 1}));
  EXPECT(replayed({1, 3}));
  EXPECT(replayed({2, 1}));
}

}  // namespace sft::cuda
