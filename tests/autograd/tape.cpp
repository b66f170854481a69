#include "autograd/tape.h"

#include <deque>

#include "autograd/functions.h"
#include "tests/doctest.h"
#include "tests/op_spec.h"

using namespace sft;

namespace {

// Two layers of linear + layer norm, as blocks, on fixed values; gradients of all that is
// trainable.
struct Net {
  OpRun run{true};
  Tape tape{run.ctx};
  std::deque<GradSlot> slots;  // a store's, which outlive the step
  std::vector<Var> params;
  Var x;

  explicit Net(bool trainable_first = true) {
    Fill fill(3);
    for (int i = 0; i < 2; ++i)
      for (const Shape& shape : {Shape{8, 8}, Shape{8}, Shape{8}, Shape{8}}) {
        Array a = fill.normal(shape);
        a.gradient = false;
        params.push_back(run.place(tape, {&a, 1})[0]);
        if (i > 0 || trainable_first)
          params.back().slot =
              &slots.emplace_back(GradSlot{.to = run.ctx.activation(shape), .block = kParameter});
      }
    Array input = fill.normal({5, 8});
    input.gradient = false;
    x = run.place(tape, {&input, 1})[0];
  }

  Var forward(bool recompute) {
    Var h = x;
    for (int i = 0; i < 2; ++i) {
      const Var* p = &params[4 * i];
      h = tape.block(
          "layer", {h}, recompute,
          [](Tape& t, std::span<const Var> in, const Var* p) {
            return layer_norm(t, linear(t, in[0], p[0], p[1]), p[2], p[3], 1e-5f);
          },
          p);
    }
    return h;
  }

  std::vector<std::vector<double>> gradients(bool recompute) {
    const Var out = forward(recompute);
    const Tensor dy = run.ctx.activation(out.shape());
    for (int64_t i = 0; i < dy.count(); ++i) dy.f32()[i] = static_cast<float>(i % 7) - 3;
    tape.seed(out, dy);
    tape.backward();
    std::vector<std::vector<double>> all;
    for (const Var& p : params)
      if (tape.gradient(p)) all.push_back(OpRun::read(tape.gradient(p)).data);
    return all;
  }
};

}  // namespace

TEST_CASE("tape: recomputation gives the same bits and less memory") {
  Net plain, rebuilt;
  const auto a = plain.gradients(false), b = rebuilt.gradients(true);
  EXPECT(a.size() == 8);
  EXPECT(a == b);
}

TEST_CASE("tape: where nothing is trainable nothing is recorded, and activations are dropped") {
  Net net(false);
  const Var first = net.params[0];
  EXPECT(!first.slot);
  const int64_t before = net.run.acts.used();
  const Var out = net.tape.block(
      "layer", {net.x}, false,
      [](Tape& t, std::span<const Var> in, const Var* p) {
        return linear(t, linear(t, in[0], p[0], p[1]), p[0], p[1]);
      },
      net.params.data());
  EXPECT(net.tape.size() == 0);
  EXPECT(net.run.acts.used() - before == bytes_of(Dtype::f32, bucket_rows(5) * 8));
  EXPECT(std::isfinite(out.value.f32()[0]));
}

TEST_CASE("tape: gradients of a frozen lower layer are not computed, those above are the same") {
  Net all, upper(false);
  const auto a = all.gradients(false), b = upper.gradients(false);
  EXPECT(b.size() == 4);
  for (size_t i = 0; i < b.size(); ++i) EXPECT(a[4 + i] == b[i]);
}

TEST_CASE("tape: a block that uses a value it does not list is refused") {
  Net net;
  static Var outside;
  outside = net.tape.block(
      "first", {net.x}, false,
      [](Tape& t, std::span<const Var> in, const Var* p) { return linear(t, in[0], p[0], p[1]); },
      net.params.data());
  const Error e = test::error_of([&] {
    net.tape.block(
        "second", {net.x}, false,
        [](Tape& t, std::span<const Var>, const Var* p) { return linear(t, outside, p[0], p[1]); },
        net.params.data());
  });
  EXPECT(e.kind == Kind::internal);
  EXPECT(e.message.find("not one of its inputs") != std::string::npos);
}

TEST_CASE("tape: the next step lies at the same addresses") {
  Net net;
  const Arena::Mark mark = net.run.acts.mark();
  const void* first = net.forward(false).value.data;
  net.tape.clear();
  net.run.acts.rewind(mark);
  EXPECT(net.forward(false).value.data == first);
}

TEST_CASE("tape: a dry step takes the memory of a real one") {
  int64_t peak[2];
  for (const bool dry : {false, true}) {
    Net net;
    net.run.ctx.dry = dry;
    net.run.acts.forget_peak();
    const Var out = net.forward(false);
    net.tape.seed(out, net.run.ctx.activation(out.shape()));
    net.tape.backward();
    peak[dry] = net.run.acts.peak() + net.run.scratch.peak();
  }
  EXPECT(peak[0] == peak[1]);
}
