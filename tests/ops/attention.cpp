#include <omp.h>

#include <algorithm>
#include <cmath>
#include <functional>

#include "autograd/functions.h"
#include "engine/cpu/narrow.h"
#include "engine/ops/attention.h"
#include "tests/doctest.h"
#include "tests/op_spec.h"

namespace sft {
namespace {

constexpr uint64_t kSeed = 1234;  // the harness's
constexpr uint32_t kUpdate = 3;

Dropout dropout_of(const Case& c) {
  return c.training ? Dropout{.rate = 0.2f, .site = fnv1a("enc.3.attn.probs.dropout")} : Dropout{};
}

// What row i of an utterance's probabilities of one head is multiplied by.
std::vector<double> factors(const Dropout& drop, int head, int32_t utterance, int64_t i,
                            int64_t T) {
  std::vector<double> f(static_cast<size_t>(T), 1.0);
  for (int64_t j = 0; drop && j < T; ++j) {
    const auto call = static_cast<uint32_t>(i * ((T + 7) / 8) + j / 8);
    const PhiloxWords words = philox(kSeed, call, static_cast<uint32_t>(utterance), kUpdate,
                                     drop.site + static_cast<uint32_t>(head));
    f[j] = bits16(words, static_cast<int>(j % 8)) < drop.threshold()
               ? 0
               : 1 / (1 - drop.threshold() / 65536.0);
  }
  return f;
}

// What is added to the score of a query for a key that is `distance` frames after it.
using Bias = std::function<double(int64_t distance)>;

// One row of y: query row i of [first, first + T), head h.
void attend(const Array& qkv, int64_t first, int64_t T, int64_t i, int h, int64_t D,
            const std::vector<double>& factor, const Bias& bias, Array& y) {
  const int64_t C = y.shape[1];
  std::vector<double> p(static_cast<size_t>(T));
  double top = -INFINITY, total = 0;
  for (int64_t j = 0; j < T; ++j) {
    p[j] = bias(j - i);
    for (int64_t d = h * D; d < (h + 1) * D; ++d)
      p[j] += qkv.at(first + i, d) * qkv.at(first + j, C + d) / std::sqrt(D);
    top = std::max(top, p[j]);
  }
  for (double& x : p) total += x = std::exp(x - top);
  for (int64_t j = 0; j < T; ++j)
    for (int64_t d = h * D; d < (h + 1) * D; ++d)
      y.at(first + i, d) += factor[j] * p[j] / total * qkv.at(first + j, 2 * C + d);
}

// dims: heads, D. bias(head, query in the pack, distance).
template <class F>
std::vector<Array> attend_all(std::span<const Array> in, const Case& c, F&& bias) {
  const auto heads = static_cast<int>(c.dims[0]);
  const int64_t D = c.dims[1], C = heads * D;
  Array y{.shape = {c.T(), C},
          .data = std::vector<double>(static_cast<size_t>(c.T() * C)),
          .per_frame = true};
  const Segments segments = c.segments();
  for (int b = 0; b < segments.batch(); ++b)
    for (int h = 0; h < heads; ++h)
      for (int64_t i = 0, T = segments.length(b); i < T; ++i)
        attend(
            in[0], segments.starts[b], T, i, h, D,
            factors(dropout_of(c), h, segments.utterances[b], i, T),
            [&](int64_t distance) { return bias(h, segments.starts[b] + i, distance); }, y);
  return {y};
}

std::vector<Array> oracle(std::span<const Array> in, const Case& c) {
  return attend_all(in, c, [](int, int64_t, int64_t) { return 0.0; });
}

const OpSpec plain{
    .name = "attention",
    .cases = {{.frames = {1}, .dims = {1, 4}},
              {.frames = {7, 1, 33}, .dims = {2, 12}},
              {.frames = {31, 65}, .dims = {2, 16}, .training = true},
              {.frames = {130, 8}, .dims = {1, 64}},
              {.frames = {17, 140}, .dims = {1, 80}, .training = true, .first_utterance = 5},
              {.frames = {12, 3}, .dims = {3, 8}, .training = true},
              {.frames = {3, 530}, .dims = {1, 4}},
              {.frames = {}, .dims = {2, 8}},
              {.frames = {37, 129, 1}, .dims = {1, 64}, .training = true},
              {.frames = {127, 65}, .dims = {2, 8}},
              {.frames = {64, 128}, .dims = {1, 40}, .training = true},
              {.frames = {33, 70}, .dims = {2, 120}, .training = true},  // heads of XLS-R 2B
              {.frames = {35, 9}, .dims = {1, 76}, .training = true},    // no chunks of 16 bytes
              {.frames = {66, 9}, .dims = {1, 128}, .training = true, .first_utterance = 2},
              {.frames = {250, 250, 250, 250}, .dims = {12, 64}, .bench = true},
              {.frames = {500, 500}, .dims = {12, 64}, .bench = true},
              {.frames = {1500}, .dims = {12, 64}, .bench = true},
              {.frames = {1500}, .dims = {12, 64}, .bench = true, .training = true}},
    .inputs = [](const Case& c, Fill& fill) -> std::vector<Array> {
      return {fill.frames(c, 3 * c.dims[0] * c.dims[1])};
    },
    .oracle = oracle,
    .run = [](Tape& t, std::span<const Var> in, const Case& c) -> std::vector<Var> {
      return {attention(t, in[0], static_cast<int>(c.dims[0]), dropout_of(c), c.segments())};
    },
    .cost =
        [](const Case& c) {
          double pairs = 0;
          for (const double T : c.frames) pairs += T * T;
          const auto C = static_cast<double>(c.dims[0] * c.dims[1]);
          return Cost{.bytes = 16 * static_cast<double>(c.T()) * C, .flops = 4 * C * pairs};
        },
    .cuda = true,
    .narrow = {Math::fast16},
    // Sums over keys; and a score's error, sqrt(D) roundings of |score| < 5, which goes into exp.
    .terms = 530 + 80 * 5 * 5,
    // y is rounded once, each probability before its product once. A row that looks at few keys has
    // the error of one probability times |value| < 4, and rms(y) is that of rows that average many
    // (0.15 of a value's deviation here). Gradients: the slopes of the scores too, and delta knows
    // y as rounded, with errors that all keys of a row share. The worst seen: 3.4 and 5.
    .roundings = 5,
    .gradient_roundings = 7,
    .products = 2,
    .gradient_products = 2,
};

// Scores up to 20: running maxima grow by more than 2^8 on the way.
OpSpec sharp() {
  OpSpec spec = plain;
  spec.name = "attention_sharp";
  spec.cases = {{.frames = {200, 5}, .dims = {1, 24}}};
  spec.inputs = [](const Case& c, Fill& fill) -> std::vector<Array> {
    return {fill.frames(c, 3 * c.dims[0] * c.dims[1], 2)};
  };
  spec.terms = 200 + 24 * 20 * 20;  // as above
  // A probability near 1 has the slope dp - delta, two numbers that all but cancel, and delta
  // knows y as rounded.
  spec.gradient_roundings = 16;
  spec.gradient_products = 2;
  return spec;
}

constexpr int64_t kGateWidth = 4;  // of a head's slice of what the gate is made of

double gate(std::span<const Array> in, int head, int64_t t) {
  const Array &z = in[1], &weight = in[2], &bias = in[3], &scale = in[4];
  double logits[2] = {};
  for (int64_t k = 0; k < 8; ++k) {
    logits[k / 4] += bias.data[k];
    for (int64_t d = 0; d < kGateWidth; ++d)
      logits[k / 4] += weight.at(k, d) * z.at(t, head * kGateWidth + d);
  }
  const double r = 1 / (1 + std::exp(-logits[0])), s = 1 / (1 + std::exp(-logits[1]));
  return r * (s * scale.data[head] - 1) + 2;
}

// dims: heads, D, R. Inputs: qkv; what the gate is made of and its weights; the table.
OpSpec biased() {
  OpSpec spec = plain;
  spec.name = "attention_bias";
  spec.cases = {{.frames = {1, 5}, .dims = {3, 4, 2}},
                {.frames = {7, 1, 33}, .dims = {3, 12, 5}, .training = true},
                {.frames = {31, 65}, .dims = {3, 16, 200}},
                {.frames = {}, .dims = {2, 8, 3}},
                {.frames = {130, 9}, .dims = {2, 64, 20}, .training = true, .first_utterance = 4},
                {.frames = {3, 200}, .dims = {8, 8, 80}},
                {.frames = {40, 65}, .dims = {2, 80, 7}, .training = true},
                {.frames = {250, 250, 250, 250}, .dims = {12, 64, 800}, .bench = true},
                {.frames = {500, 500}, .dims = {12, 64, 800}, .bench = true},
                {.frames = {1500}, .dims = {12, 64, 800}, .bench = true},
                {.frames = {1500}, .dims = {12, 64, 800}, .bench = true, .training = true}};
  spec.inputs = [](const Case& c, Fill& fill) -> std::vector<Array> {
    const int64_t heads = c.dims[0];
    return {fill.frames(c, 3 * heads * c.dims[1]), fill.frames(c, heads * kGateWidth),
            fill.normal({8, kGateWidth}, 0.4),     fill.normal({8}, 0.4),
            fill.uniform({heads}, 0.5, 1.5),       fill.normal({heads, 2 * c.dims[2] + 1})};
  };
  spec.oracle = [](std::span<const Array> in, const Case& c) {
    const int64_t heads = c.dims[0], reach = c.dims[2];
    std::vector<double> gates;
    for (int64_t t = 0; t < c.T(); ++t)
      for (int h = 0; h < heads; ++h) gates.push_back(gate(in, h, t));
    return attend_all(in, c, [&](int h, int64_t t, int64_t distance) {
      return gates[t * heads + h] * in[5].at(h, reach + std::clamp(distance, -reach, reach));
    });
  };
  spec.run = [](Tape& t, std::span<const Var> in, const Case& c) -> std::vector<Var> {
    const Var gate = rel_gate(t, in[1], in[2], in[3], in[4]);
    return {attention(t, in[0], static_cast<int>(c.dims[0]), dropout_of(c), c.segments(),
                      {gate, in[5]})};
  };
  // Gradients of the gate's weights are sums of slopes that all but cancel: over keys (delta knows
  // y as rounded) and over frames; of the scale, one number a head, so that with few heads all of
  // them may be near zero at once.
  spec.gradient_roundings = 24;
  spec.gradient_products = 24;  // worst seen: 11, of five seeds
  return spec;
}

// Distances beyond a table that is longer than any block of keys.
OpSpec long_biased() {
  OpSpec spec = biased();
  spec.name = "attention_bias_long";
  spec.cases = {{.frames = {350, 2}, .dims = {1, 4, 300}}};
  spec.cuda = false;  // as shorter tables, and slow to emulate
  spec.terms = 350 + 80 * 5 * 5;
  return spec;
}

const RegisterOp plain_spec(plain), sharp_spec(sharp()), biased_spec(biased()),
    long_biased_spec(long_biased());

// y and all gradients of a fixed case.
std::vector<double> numbers(uint64_t seed, int threads) {
  const int before = omp_get_max_threads();
  omp_set_num_threads(threads);
  OpRun run(/*poison=*/true, seed);
  Tape tape(run.ctx);
  Fill fill(9);
  const Case c{.frames = {9, 130, 40}, .dims = {4, 8}, .training = true};
  const std::vector<Var> in = run.place(
      tape, std::vector<Array>{fill.frames(c, 96), fill.normal({4, c.T()}), fill.normal({4, 51})});
  const Var y = attention(tape, in[0], 4, dropout_of(c), c.segments(), {in[1], in[2]});
  tape.seed(y, y.value);
  tape.backward();
  std::vector<double> all = OpRun::read(y).data;
  for (const Var& v : in)
    for (const double x : OpRun::read(tape.gradient(v)).data) all.push_back(x);
  omp_set_num_threads(before);
  return all;
}

}  // namespace

TEST_CASE("attention: same bits for any number of threads; the whole seed counts") {
  const std::vector<double> one = numbers(7, 1);
  EXPECT(numbers(7, 2) == one);
  EXPECT(numbers(7, 5) == one);
  EXPECT(numbers(7 + (uint64_t{1} << 32), 1) != one);
}

namespace {

void check_dry_step(Where where, const Case& c) {
  int64_t acts[2], scratch[2];
  for (const bool dry : {false, true}) {
    OpRun run(/*poison=*/false, kSeed, kUpdate, where);
    Tape tape(run.ctx);
    Fill fill(1);
    const int64_t width = 3 * c.dims[0] * c.dims[1];
    const std::vector<Var> in = run.place(tape, std::vector<Array>{fill.frames(c, width)});
    run.ctx.dry = dry;
    const Var y = attention(tape, in[0], static_cast<int>(c.dims[0]), dropout_of(c), c.segments());
    tape.seed(y, y.value);
    tape.backward();
    acts[dry] = run.acts.peak(), scratch[dry] = run.scratch.peak();
  }
  EXPECT(acts[0] == acts[1]);
  EXPECT(scratch[0] == scratch[1]);
}

}  // namespace

TEST_CASE("attention: a dry step takes the memory of a real one") {
  check_dry_step({}, {.frames = {33, 1, 600}, .dims = {2, 12}});
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  check_dry_step({Device::cuda, Math::exact}, {.frames = {33, 1}, .dims = {2, 12}});
  check_dry_step({Device::cuda, Math::bf16},
                 {.frames = {33, 1}, .dims = {2, 16}, .training = true});
}

TEST_CASE("attention on cuda: NaN of an utterance stays in it") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  const Case c{.frames = {5, 41, 3}, .dims = {1, 16}};
  for (const Math math : {Math::exact, Math::bf16}) {
    OpRun run(true, kSeed, kUpdate, {Device::cuda, math});
    Tape tape(run.ctx);
    Fill fill(2);
    Array qkv = fill.frames(c, 48);
    for (int64_t t : {0, 4, 46, 48})
      for (int64_t i = 0; i < 48; ++i) qkv.at(t, i) = NAN;
    const std::vector<Var> in = run.place(tape, std::vector<Array>{qkv});
    const Var y = attention(tape, in[0], 1, {}, c.segments());
    tape.seed(y, y.value);
    tape.backward();
    const Array out = OpRun::read(y), gradient = OpRun::read(tape.gradient(in[0]));
    for (int64_t t = 5; t < 46; ++t) {
      for (int64_t i = 0; i < 16; ++i) EXPECT(std::isfinite(out.at(t, i)));
      for (int64_t i = 0; i < 48; ++i) EXPECT(std::isfinite(gradient.at(t, i)));
    }
  }
}

TEST_CASE(
    "attention in 16 bits: what is not finite spoils what it takes part in, and no other head") {
  if (!cpu::narrow::available(Math::fast16)) return test::skip("needs AVX-512 with VNNI");
  const Case c{.frames = {5, 41, 3}, .dims = {2, 16}};
  // Of frame 20: a query, a key, a value of head 1; and a gradient.
  for (const int64_t column : {20, 52, 84, -1})
    for (const double bad : {static_cast<double>(INFINITY), static_cast<double>(NAN)}) {
      if (column == 52 && std::isinf(bad)) continue;  // scores of -infinity are fine
      OpRun run(true, kSeed, kUpdate, {Device::cpu, Math::fast16});
      Tape tape(run.ctx);
      Fill fill(2);
      Array qkv = fill.frames(c, 96), dy = fill.frames(c, 32);
      (column < 0 ? dy.at(20, 20) : qkv.at(20, column)) = bad;
      const std::vector<Var> in = run.place(tape, std::vector<Array>{qkv});
      const Var y = attention(tape, in[0], 2, {}, c.segments());
      tape.seed(y, run.write(dy, Dtype::f32));
      tape.backward();
      const Array out = OpRun::read(y), gradient = OpRun::read(tape.gradient(in[0]));
      const auto finite = [](const Array& a, int64_t t, int64_t head) {
        for (int64_t i = 0; i < a.shape[1]; ++i)
          if (i / 16 % 2 == head && !std::isfinite(a.at(t, i))) return false;
        return true;
      };
      for (int64_t t = 0; t < c.T(); ++t) {
        const bool inside = t >= 5 && t < 46;
        EXPECT(finite(out, t, 0));
        EXPECT(finite(gradient, t, 0));
        // A query spoils its own row, a gradient none.
        EXPECT(finite(out, t, 1) == (!inside || column < 0 || (column == 20 && t != 20)));
        EXPECT(finite(gradient, t, 1) == !inside);
      }
    }
}

TEST_CASE("attention: what it refuses") {
  OpRun run(true);
  const Case c{.frames = {5}};
  const auto message = [&](int64_t T, int64_t width, int heads) {
    const Tensor qkv = run.ctx.activation({T, width});
    return test::error_of([&] { attention_forward(run.ctx, qkv, {}, heads, {}, c.segments()); })
        .message;
  };
  const auto bias_message = [&](Shape gate, Shape table) {
    const Tensor qkv = run.ctx.activation({5, 24});
    const RelativeBias bias{run.ctx.activation(gate), run.ctx.activation(table)};
    return test::error_of([&] { attention_forward(run.ctx, qkv, bias, 2, {}, c.segments()); })
        .message;
  };
  EXPECT(bias_message({2, 4}, {2, 7}).find("the gate is [2, 4]") != std::string::npos);
  EXPECT(bias_message({2, 5}, {2, 6}).find("the table is [2, 6]") != std::string::npos);
  EXPECT(bias_message({2, 5}, {1, 7}).find("the table is [1, 7]") != std::string::npos);
  EXPECT(message(5, 18, 3).find("head width is 2") != std::string::npos);
  EXPECT(message(5, 3 * 132, 1).find("head width is 132") != std::string::npos);
  EXPECT(message(5, 25, 1).find("qkv is [5, 25]") != std::string::npos);
  EXPECT(message(6, 24, 1).find("5 frames") != std::string::npos);
}

}  // namespace sft
