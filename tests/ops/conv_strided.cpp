#include "tests/doctest.h"
#include "tests/ops/conv.h"

#include <utility>

#include "autograd/functions.h"

namespace sft {
namespace {

constexpr int32_t kHop = 24;  // whole strides of every case
constexpr double kEps = 1e-5;

// dims: Cin, Cout, K, stride. Inputs: x, weight, then bias if it has one, norm weight and bias.
OpSpec spec(const char* name, bool bias, bool norm) {
  const auto run = [=](Tape& t, std::span<const Var> in, const Case& c) -> std::vector<Var> {
    return {conv_strided(t, in[0], in[1], bias ? in[2] : Var(), norm ? in[2 + bias] : Var(),
                         norm ? in[3 + bias] : Var(), static_cast<int32_t>(c.dims[3]), kEps,
                         slots_of(c.frames, kHop).view())};
  };
  const auto oracle = [=](std::span<const Array> in, const Case& c) -> std::vector<Array> {
    const auto stride = static_cast<int32_t>(c.dims[3]);
    const SlotList& slots = slots_of(c.frames, kHop);
    Array y = naive_conv(in[0], in[1], bias ? &in[2] : nullptr, stride, slots);
    const Array kept = y;
    if (norm) norm_rows(y, in[2 + bias], in[3 + bias], kEps);
    const SlotList next = slots.next(static_cast<int32_t>(c.dims[2]), stride);
    const Slots out = next.view();
    for (double& v : y.data) v = exact_gelu(v);
    for (int b = 0; b < out.batch(); ++b)
      for (int64_t t = out.starts[b] + out.valid[b]; t < out.starts[b + 1]; ++t)
        for (int64_t o = 0; o < y.shape[1]; ++o) y.at(t, o) = 0;
    return {y};
  };
  const auto inputs = [=](const Case& c, Fill& fill) {
    const int64_t Cin = c.dims[0], Cout = c.dims[1], K = c.dims[2];
    const double deviation = 1 / std::sqrt(static_cast<double>(Cin * K));
    std::vector<Array> in{fill.normal({slots_of(c.frames, kHop).view().rows(), Cin}),
                          fill.normal({Cout, Cin, K}, deviation)};
    in[0].per_frame = true;  // activations, of the type that the run computes in
    for (int i = 0; i < bias + 2 * norm; ++i) in.push_back(fill.normal({Cout}));
    return in;
  };
  const auto cost = [](const Case& c) {
    const double rows = slots_of(c.frames, kHop).view().rows();
    const double out = rows / c.dims[3] * c.dims[1];
    return Cost{.bytes = 4 * (rows * c.dims[0] + out), .flops = 2 * out * c.dims[0] * c.dims[2]};
  };
  return {.name = name,
          .cases = {{.frames = {5}, .dims = {3, 13, 2, 2}},
                    {.frames = {31, 2, 72, 48}, .dims = {7, 33, 3, 2}},
                    {.frames = {25, 40}, .dims = {4, 17, 7, 3}},  // taps of three rows
                    {.frames = {150, 100}, .dims = {50, 49, 3, 2}},
                    {.frames = {9}, .dims = {2, 12, 1, 1}},
                    {.frames = {}, .dims = {4, 4, 3, 2}},
                    {.frames = {48}, .dims = {16, 136, 3, 2}},  // edges of the tiles of a GPU
                    {.frames = {24}, .dims = {48, 8, 3, 2}},
                    {.frames = {4100}, .dims = {2, 20, 2, 2}},  // a split sum
                    {.frames = {48}, .dims = {800, 20, 3, 2}},  // a sum in two blocks
                    {.frames = {600}, .dims = {6, 70, 3, 2}},   // chunks; columns in two blocks
                    {.frames = {12800, 12768}, .dims = {512, 512, 3, 2}, .bench = true},
                    {.frames = {1600, 1584}, .dims = {512, 512, 2, 2}, .bench = true}},
          .inputs = inputs,
          .oracle = oracle,
          .run = run,
          .cost = cost,
          .cuda = true,
          .narrow = {Math::fast16, Math::bf16},
          // Of products in pairs of rows as well, whose errors are 1.3 times as large.
          .terms = 512,
          // y; with a norm also what it gets: over few channels times about two, times its weight
          .roundings = norm ? 5.0 : 1.0,
          // pre (in the slope, and in what the norm gets), dpre, dx
          .gradient_roundings = norm ? 8.0 : 3.0,
          .products = norm ? 2.0 : 1.0,
          .gradient_products = norm ? 3.0 : 2.0,
          .packs = false};
}

const RegisterOp plain(spec("conv_strided", false, false));
const RegisterOp biased(spec("conv_strided_bias", true, false));
const RegisterOp normed(spec("conv_strided_norm", true, true));

// One convolution of a pack, forward and backward.
struct Result {
  std::vector<double> y, dx, dweight;
};

Result run_pack(std::span<const int32_t> rows, const Array& x, const Array& weight, const Array& dy,
                Where where) {
  OpRun run(/*poison=*/true, 0, 0, where);
  Tape tape(run.ctx);
  const SlotList slots(rows, 4);
  std::vector<Array> arrays{x, weight};
  arrays[0].per_frame = true;
  const std::vector<Var> in = run.place(tape, arrays);
  const Var y = conv_strided(tape, in[0], in[1], {}, {}, {}, 2, 0, slots.view());
  tape.seed(y, run.write(dy, y.value.dtype));
  tape.backward();
  const auto values = [](Tensor t) { return OpRun::read(t).data; };
  return {values(y), values(tape.gradient(in[0])), values(tape.gradient(in[1]))};
}

void check_between_slots(Where where) {
  const std::vector<int32_t> rows{9, 4, 13};
  Fill fill(3);
  Array x = fill.normal({32, 5});
  const Array weight = fill.normal({6, 5, 3});
  Array dy = fill.normal({16, 6});
  const Result before = run_pack(rows, x, weight, dy, where);
  const SlotList list(rows, 4);
  const Slots slots = list.view();
  const SlotList next = list.next(3, 2);
  for (int b = 0; b < slots.batch(); ++b) {
    for (int64_t t = slots.starts[b] + slots.valid[b]; t < slots.starts[b + 1]; ++t)
      for (int64_t i = 0; i < 5; ++i) x.at(t, i) = 1e6;
    const Slots out = next.view();
    for (int64_t t = out.starts[b] + out.valid[b]; t < out.starts[b + 1]; ++t)
      for (int64_t o = 0; o < 6; ++o) dy.at(t, o) = NAN;
  }
  const Result after = run_pack(rows, x, weight, dy, where);
  EXPECT(before.y == after.y);
  EXPECT(before.dx == after.dx);
  EXPECT(before.dweight == after.dweight);
}

void check_alone(Where where) {
  const std::vector<int32_t> rows{401, 7, 33, 96};
  const SlotList list(rows, 4), next = list.next(3, 2);
  const Slots slots = list.view(), out = next.view();
  Fill fill(4);
  const Array x = fill.normal({slots.rows(), 20}), weight = fill.normal({17, 20, 3});
  const Array dy = fill.normal({out.rows(), 17});
  const auto cut = [](const Array& a, int64_t first, int64_t last) {
    const int64_t C = a.shape.back();
    return Array{.shape = {last - first, C},
                 .data = {a.data.begin() + first * C, a.data.begin() + last * C}};
  };
  const Result whole = run_pack(rows, x, weight, dy, where);
  for (int b = 0; b < slots.batch(); ++b) {
    const int64_t x0 = slots.starts[b], x1 = slots.starts[b + 1];
    const int64_t y0 = out.starts[b], y1 = out.starts[b + 1];
    const Result alone =
        run_pack(std::span(rows).subspan(b, 1), cut(x, x0, x1), weight, cut(dy, y0, y1), where);
    const auto part = [](const std::vector<double>& v, int64_t first, int64_t last) {
      return std::vector<double>(v.begin() + first, v.begin() + last);
    };
    EXPECT(alone.y == part(whole.y, y0 * 17, y1 * 17));
    EXPECT(alone.dx == part(whole.dx, x0 * 20, x1 * 20));
  }
}

void check_forward_alone(Where where) {
  const std::vector<int32_t> rows{50, 31};
  const SlotList list(rows, 4);
  Fill fill(5);
  std::vector<Array> arrays{fill.normal({list.view().rows(), 6}), fill.normal({9, 6, 3}),
                            fill.normal({9}), fill.normal({9}), fill.normal({9})};
  arrays[0].per_frame = true;
  std::vector<std::vector<double>> ys;
  for (const bool recording : {true, false}) {
    OpRun run(/*poison=*/true, 0, 0, where);
    Tape tape(run.ctx, recording);
    const std::vector<Var> in = run.place(tape, arrays);
    const Tensor y = conv_strided(tape, in[0], in[1], in[2], in[3], in[4], 2, kEps, list.view());
    ys.push_back(OpRun::read(y).data);
  }
  EXPECT(ys[0] == ys[1]);
}

// Slots of whole pairs of rows of x: of y they start at odd rows, too, and end with one.
const std::vector<int32_t> kOddRows{9, 5, 12, 9};

std::vector<double> odd_slots(const Array& x, const Array& weight) {
  OpRun run(/*poison=*/true);
  Tape tape(run.ctx, false);
  const SlotList slots(kOddRows, 2);
  const std::vector<Array> arrays{x, weight};
  const std::vector<Var> in = run.place(tape, arrays);
  return OpRun::read(conv_strided(tape, in[0], in[1], {}, {}, {}, 2, 0, slots.view())).data;
}

void check_odd_slots() {
  Fill fill(7);
  const SlotList slots(kOddRows, 2);
  const Array x = fill.normal({slots.view().rows(), 5}), weight = fill.normal({6, 5, 3});
  REQUIRE(slots.view().rows() % 4 == 2);
  const std::vector<double> y = odd_slots(x, weight);
  const Array expected = naive_conv(x, weight, nullptr, 2, slots);
  REQUIRE(y.size() == expected.data.size());
  for (size_t i = 0; i < y.size(); ++i)
    EXPECT(std::abs(y[i] - exact_gelu(expected.data[i])) < 1e-5);
}

// Of the rows of x, one after the other.
void check_not_finite(double value) {
  Fill fill(8);
  const SlotList slots(kOddRows, 2), next = slots.next(3, 2);
  const Slots out = next.view();
  Array x = fill.normal({slots.view().rows(), 5});
  const Array weight = fill.normal({6, 5, 3});
  const std::vector<double> before = odd_slots(x, weight);
  for (int64_t row = 0; row < slots.view().rows(); ++row) {
    const double was = std::exchange(x.at(row, 3), value);
    const std::vector<double> after = odd_slots(x, weight);
    x.at(row, 3) = was;
    for (int b = 0; b < out.batch(); ++b)
      for (int64_t i = out.starts[b] * 6; i < (out.starts[b] + out.valid[b]) * 6; ++i) {
        const int64_t first = i / 6 * 2;
        const bool reads = row >= first && row < first + 3;
        EXPECT((reads ? after[i] != before[i] : after[i] == before[i]));
      }
  }
}

}  // namespace

TEST_CASE("conv_strided: slots that start and end with odd rows") { check_odd_slots(); }
TEST_CASE("conv_strided: what is not finite reaches the rows that read it, and no other bit") {
  check_not_finite(NAN);
  check_not_finite(INFINITY);
}
TEST_CASE("conv_strided: what lies between slots changes no bit") { check_between_slots({}); }
TEST_CASE("conv_strided: packed, each utterance has the bits it has alone") { check_alone({}); }
TEST_CASE("conv_strided: forward alone gives the bits of forward for backward") {
  check_forward_alone({});
}

TEST_CASE("conv_strided: the same three on a device") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  for (const Math math : {Math::exact, Math::bf16}) {
    check_between_slots({Device::cuda, math});
    check_alone({Device::cuda, math});
    check_forward_alone({Device::cuda, math});
  }
}

TEST_CASE("conv_strided: on a device as on the CPU, at widths that the oracle is too slow for") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  const SlotList& slots = slots_of(std::vector<int32_t>{270, 61}, 4);
  Fill fill(6);
  std::vector<Array> in{fill.normal({slots.view().rows(), 128}),
                        fill.normal({256, 128, 3}, 1 / std::sqrt(384.0)), fill.normal({256}),
                        fill.normal({256}), fill.normal({256})};
  in[0].per_frame = true;
  const Array dy = fill.normal({slots.view().rows() / 2, 256});
  const auto op = [&](Tape& t, std::span<const Var> v) {
    return conv_strided(t, v[0], v[1], v[2], v[3], v[4], 2, kEps, slots.view());
  };
  for (const double d : distances_from_cpu(Math::exact, in, dy, op)) EXPECT(d < 1e-5);
  // x, dy and the weights are rounded as well as what is in between.
  for (const double d : distances_from_cpu(Math::bf16, in, dy, op)) EXPECT(d < 10 * 0x1p-8);
}

}  // namespace sft
