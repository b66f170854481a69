// What holds for linear layers beyond their specs (tests/ops/linear.cpp, ffn.cpp).
#include <algorithm>
#include <cmath>

#include "autograd/functions.h"
#include "engine/cpu/gemm.h"
#include "engine/ops/linear.h"
#include "tests/doctest.h"
#include "tests/op_spec.h"

using namespace sft;

namespace {

const Dropout kInside{.rate = 0.2f, .site = fnv1a("enc.0.ffn.act.dropout")};
const Dropout kOutside{.rate = 0.1f, .site = fnv1a("enc.0.ffn.dropout")};

// A linear layer and a feed-forward part over T = 420 frames; x, its weights, then output.
struct Layers {
  OpRun run{/*poison=*/true};
  std::vector<Var> in;
  Var out;

  Layers(const Case& c, bool recording, bool dry = false) {
    Fill fill(3);
    Tape t(run.ctx, recording);
    in =
        run.place(t, std::vector<Array>{fill.frames(c, 24), fill.normal({24, 24}),
                                        fill.normal({24}), fill.normal({48, 24}), fill.normal({48}),
                                        fill.normal({24, 48}), fill.normal({24})});
    run.ctx.dry = dry;
    const Var hidden = linear(t, in[0], in[1], in[2], in[0], kOutside, c.segments());
    out = ffn(t, hidden, in[3], in[4], in[5], in[6], hidden, kInside, kOutside, c.segments());
    if (!recording) return;
    t.seed(out, run.ctx.activation(out.shape()));
    t.backward();
  }
};

int64_t calls_for(std::vector<int32_t> frames) {
  const int64_t before = cpu::gemm_calls();
  Layers(Case{.frames = std::move(frames)}, true);
  return cpu::gemm_calls() - before;
}

}  // namespace

TEST_CASE("linear: as many GEMMs for seven utterances as for one") {
  const int64_t calls = calls_for({420});
  EXPECT(calls > 0);
  EXPECT(calls_for({1, 100, 19, 60, 200, 33, 7}) == calls);
}

TEST_CASE("linear: the same bits with and without a tape") {
  const Case c{.frames = {300, 1, 119}};
  const Layers recorded(c, true), plain(c, false);
  EXPECT(OpRun::read(recorded.out).data == OpRun::read(plain.out).data);
}

TEST_CASE("linear: a dry step takes the memory of a real one") {
  const Case c{.frames = {300, 1, 119}};
  const Layers real(c, true), dry(c, true, true);
  EXPECT(real.run.acts.peak() == dry.run.acts.peak());
  EXPECT(real.run.scratch.peak() == dry.run.scratch.peak());
}

TEST_CASE("linear: rows of x may be strided, spare rows of y are zero") {
  OpRun run(/*poison=*/true);
  Tape t(run.ctx);
  Fill fill(4);
  const auto in = run.place(t, std::vector<Array>{fill.normal({33, 60}), fill.normal({24, 20})});
  const Tensor part = in[0].value.columns(20, 20), copy = run.ctx.activation({33, 20});
  for (int64_t r = 0; r < 33; ++r) std::copy_n(part.row(r), 20, copy.row(r));
  const Var strided = linear(t, Var{part}, in[1]), dense = linear(t, Var{copy}, in[1]);
  double worst = 0;  // the library may sum dense rows in another order
  for (int64_t i = 0; i < 33 * 24; ++i)
    worst = std::max(worst, double{std::abs(strided.value.f32()[i] - dense.value.f32()[i])});
  EXPECT(worst <= 20 * 0x1p-22);
  const Tensor y = dense.value;
  EXPECT(std::all_of(y.row(33), y.row(bucket_rows(33)), [](float v) { return v == 0; }));
}

TEST_CASE("linear: wrong shapes are named") {
  OpRun run(/*poison=*/true);
  const Tensor x = run.ctx.activation({5, 8}), weight = run.ctx.activation({4, 9});
  EXPECT(test::error_of([&] { linear_forward(run.ctx, x, weight, {}); }).message.find("[4, 9]") !=
         std::string::npos);
}

TEST_CASE("scale_grad: shares the value, scales the gradient") {
  OpRun run(/*poison=*/true);
  Tape t(run.ctx);
  Fill fill(5);
  const Var x = run.place(t, std::vector<Array>{fill.normal({7, 33})})[0];
  const Var y = scale_grad(t, x, 0.1f);
  EXPECT(y.value.data == x.value.data);
  const Tensor dy = run.ctx.activation({7, 33});
  for (int64_t i = 0; i < dy.count(); ++i) dy.f32()[i] = static_cast<float>(i);
  t.seed(y, dy);
  t.backward();
  const Tensor dx = t.gradient(x);
  for (int64_t i = 0; i < dy.count(); ++i) EXPECT(dx.f32()[i] == 0.1f * static_cast<float>(i));
}
