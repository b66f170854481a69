#include "tests/doctest.h"
#include "tests/ops/conv.h"

#include "autograd/functions.h"

namespace sft {
namespace {

constexpr double kEps = 1e-5;

// GELU of u normalised as `norm` says, zero in rows that are not valid.
void finish(Array& u, StemNorm norm, std::span<const Array> affine, const Slots& slots) {
  const int64_t C = u.shape[1];
  if (norm == StemNorm::layer) norm_rows(u, affine[0], affine[1], kEps);
  for (int b = 0; b < slots.batch(); ++b) {
    const int64_t first = slots.starts[b], last = first + slots.valid[b];
    for (int64_t c = 0; norm == StemNorm::group && c < C; ++c) {
      double mean = 0, variance = 0;
      for (int64_t t = first; t < last; ++t) mean += u.at(t, c) / slots.valid[b];
      for (int64_t t = first; t < last; ++t)
        variance += std::pow(u.at(t, c) - mean, 2) / slots.valid[b];
      for (int64_t t = first; t < last; ++t)
        u.at(t, c) = (u.at(t, c) - mean) / std::sqrt(variance + kEps) * affine[0].data[c] +
                     affine[1].data[c];
    }
    for (int64_t t = first; t < slots.starts[b + 1]; ++t)
      for (int64_t c = 0; c < C; ++c) u.at(t, c) = t < last ? exact_gelu(u.at(t, c)) : 0;
  }
}

// dims: C, K, stride, hop. Inputs: samples, weight, then bias if it has one, norm weight and bias.
OpSpec spec(const char* name, bool bias, StemNorm norm) {
  const bool affine = norm != StemNorm::none;
  const auto slots_in = [](const Case& c) -> const SlotList& {
    return slots_of(c.frames, static_cast<int32_t>(c.dims[3]));
  };
  const auto run = [=](Tape& t, std::span<const Var> in, const Case& c) -> std::vector<Var> {
    const ConvStem stem{static_cast<int32_t>(c.dims[2]), norm, kEps};
    return {conv_stem(t, in[0], in[1], bias ? in[2] : Var(), affine ? in[2 + bias] : Var(),
                      affine ? in[3 + bias] : Var(), stem, slots_in(c).view())};
  };
  const auto oracle = [=](std::span<const Array> in, const Case& c) -> std::vector<Array> {
    const auto stride = static_cast<int32_t>(c.dims[2]);
    Array u = naive_conv(in[0], in[1], bias ? &in[2] : nullptr, stride, slots_in(c));
    const SlotList out = slots_in(c).next(static_cast<int32_t>(c.dims[1]), stride);
    finish(u, norm, in.subspan(2 + bias), out.view());
    return {u};
  };
  const auto inputs = [=](const Case& c, Fill& fill) {
    const int64_t C = c.dims[0], K = c.dims[1];
    std::vector<Array> in{fill.normal({slots_in(c).view().rows()}, 0.1),
                          fill.normal({C, 1, K}, 1 / std::sqrt(static_cast<double>(K)))};
    in[0].gradient = false;
    if (bias) in.push_back(fill.normal({C}));
    for (int i = 0; i < 2 * affine; ++i) in.push_back(fill.normal({C}));
    return in;
  };
  const auto cost = [=](const Case& c) {
    const double out = static_cast<double>(slots_in(c).view().rows() / c.dims[2] * c.dims[0]);
    return Cost{.bytes = 4 * out, .flops = 2 * out * c.dims[1]};
  };
  return {.name = name,
          .cases = {{.frames = {400, 401}, .dims = {5, 10, 5, 320}},
                    {.frames = {719, 9, 1200}, .dims = {33, 10, 5, 320}},
                    {.frames = {2100}, .dims = {7, 16, 7, 70}},
                    {.frames = {60, 1}, .dims = {3, 2, 2, 20}},
                    {.frames = {}, .dims = {4, 10, 5, 320}},
                    {.frames = {640, 100}, .dims = {264, 10, 5, 320}},
                    {.frames = {80000, 79999}, .dims = {512, 10, 5, 320}, .bench = true}},
          .inputs = inputs,
          .oracle = oracle,
          .run = run,
          .cost = cost,
          .cuda = true,
          .terms = 640,
          .gradient_roundings = 0,  // all of them are f32
          .packs = false};
}

const RegisterOp group(spec("conv_stem_group", false, StemNorm::group));
const RegisterOp layer(spec("conv_stem_layer", true, StemNorm::layer));
const RegisterOp none(spec("conv_stem_none", true, StemNorm::none));

struct Result {
  std::vector<double> y, dweight, dbias;
};

Result run_pack(std::span<const int32_t> lengths, const Array& samples, const Array& weight,
                const Array& dy, Where where) {
  OpRun run(/*poison=*/true, 0, 0, where);
  Tape tape(run.ctx);
  const SlotList slots(lengths, 320);
  const Array ones{.shape = {9}, .data = std::vector<double>(9, 1)};
  const std::vector<Array> arrays{samples, weight, ones, ones};
  const std::vector<Var> in = run.place(tape, arrays);
  const Var y = conv_stem(tape, in[0], in[1], {}, in[2], in[3], {}, slots.view());
  tape.seed(y, run.write(dy, y.value.dtype));
  tape.backward();
  const auto values = [](Tensor t) { return OpRun::read(t).data; };
  return {values(y), values(tape.gradient(in[1])), values(tape.gradient(in[3]))};
}

void check_pack(Where where) {
  const std::vector<int32_t> lengths{719, 400, 401, 1200};
  const SlotList list(lengths, 320), next = list.next(10, 5);
  const Slots slots = list.view(), out = next.view();
  Fill fill(11);
  Array samples = fill.normal({slots.rows()}, 0.1), dy = fill.normal({out.rows(), 9});
  const Array weight = fill.normal({9, 1, 10});
  const Result whole = run_pack(lengths, samples, weight, dy, where);
  std::vector<double> dweight(weight.data.size());
  for (int b = 0; b < slots.batch(); ++b) {
    const int64_t s0 = slots.starts[b], s1 = slots.starts[b + 1];
    const int64_t y0 = out.starts[b] * 9, y1 = out.starts[b + 1] * 9;
    Array part{.shape = {s1 - s0}, .data = {samples.data.begin() + s0, samples.data.begin() + s1}};
    Array part_dy{.shape = {(y1 - y0) / 9, 9},
                  .data = {dy.data.begin() + y0, dy.data.begin() + y1}};
    const Result alone = run_pack(std::span(lengths).subspan(b, 1), part, weight, part_dy, where);
    EXPECT(alone.y == std::vector<double>(whole.y.begin() + y0, whole.y.begin() + y1));
    for (size_t i = 0; i < dweight.size(); ++i) dweight[i] += alone.dweight[i];
  }
  for (size_t i = 0; i < dweight.size(); ++i)
    EXPECT(std::abs(dweight[i] - whole.dweight[i]) <= 1e-5 * (1 + std::abs(dweight[i])));

  for (int b = 0; b < slots.batch(); ++b) {
    for (int64_t s = slots.starts[b] + slots.valid[b]; s < slots.starts[b + 1]; ++s)
      samples.data[s] = 1e6;
    for (int64_t t = out.starts[b] + out.valid[b]; t < out.starts[b + 1]; ++t)
      for (int64_t c = 0; c < 9; ++c) dy.at(t, c) = NAN;
  }
  const Result after = run_pack(lengths, samples, weight, dy, where);
  EXPECT(whole.y == after.y);
  EXPECT(whole.dweight == after.dweight);
  EXPECT(whole.dbias == after.dbias);
}

}  // namespace

TEST_CASE("conv_stem: packed, each utterance has the bits it has alone, and nothing leaks") {
  check_pack({});
}

TEST_CASE("conv_stem: the same on a device") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  check_pack({Device::cuda, Math::exact});
  check_pack({Device::cuda, Math::bf16});
}

}  // namespace sft
