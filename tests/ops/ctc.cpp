#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>

#include "autograd/functions.h"
#include "tests/doctest.h"
#include "tests/op_spec.h"

namespace sft {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

double log_add(double a, double b) {
  const double most = std::max(a, b);
  return std::isinf(most) ? most : most + std::log(std::exp(a - most) + std::exp(b - most));
}

std::vector<double> log_softmax(const Array& x, int64_t t) {
  double total = -INFINITY;
  for (int64_t v = 0; v < x.shape[1]; ++v) total = log_add(total, x.at(t, v));
  std::vector<double> y;
  for (int64_t v = 0; v < x.shape[1]; ++v) y.push_back(x.at(t, v) - total);
  return y;
}

// -log p(labels) of rows [begin, end) by the recursion over blank l1 blank l2 ... blank.
double recursion(const Array& x, int64_t begin, int64_t end, const std::vector<int>& labels,
                 int blank) {
  std::vector<int> path{blank};
  for (int label : labels) path.push_back(label), path.push_back(blank);
  std::vector<double> alpha(path.size(), -INFINITY);
  alpha[0] = 0;  // in front of the first frame; from there one step leads to state 0 or 1
  for (int64_t t = begin; t < end; ++t) {
    const std::vector<double> p = log_softmax(x, t);
    std::vector<double> next(path.size());
    for (size_t s = 0; s < path.size(); ++s) {
      double sum = alpha[s];
      if (s >= 1) sum = log_add(sum, alpha[s - 1]);
      if (s >= 2 && path[s] != blank && path[s] != path[s - 2]) sum = log_add(sum, alpha[s - 2]);
      next[s] = sum + p[path[s]];
    }
    alpha = next;
  }
  const double last = alpha.back();
  return -(path.size() > 1 ? log_add(last, alpha[path.size() - 2]) : last);
}

// Probability of every labelling of a frame sequence: all paths, merged.
std::map<std::vector<int>, double> all_labellings(const Array& x, int blank) {
  std::map<std::vector<int>, double> p;
  const int64_t T = x.shape[0], V = x.shape[1];
  const auto paths = static_cast<int64_t>(std::pow(V, T));
  for (int64_t code = 0; code < paths; ++code) {
    std::vector<int> labels;
    double log_p = 0;
    int previous = -1;
    for (int64_t t = 0, rest = code; t < T; ++t, rest /= V) {
      const int v = static_cast<int>(rest % V);
      log_p += log_softmax(x, t)[v];
      if (v != previous && v != blank) labels.push_back(v);
      previous = v;
    }
    p[labels] += std::exp(log_p);
  }
  return p;
}

struct Result {
  std::vector<double> losses, dlogits;
  int32_t infeasible;
};

// Forward and backward of a pack.
Result run_ctc(Where where, const Array& x, const std::vector<int32_t>& frames,
               const std::vector<std::vector<int>>& labels, int blank,
               const std::vector<float>& weights) {
  OpRun run(/*poison=*/true, 0, 0, where);
  Tape tape(run.ctx);
  const SegmentList list(frames);
  std::vector<int32_t> flat, starts{0};
  for (const auto& one : labels) {
    flat.insert(flat.end(), one.begin(), one.end());
    starts.push_back(static_cast<int32_t>(flat.size()));
  }
  const Var logits = run.place(tape, std::span(&x, 1))[0];
  const CtcLoss out = ctc(tape, logits, list.view(), {flat, starts}, weights, blank);
  tape.loss(out.losses);
  tape.backward();
  return {OpRun::read(out.losses).data, OpRun::read(tape.gradient(logits)).data, out.infeasible};
}

// Both not finite in the same way, or close: sums of both are in double, in another order.
bool same(double a, double b) {
  return std::isfinite(a) ? std::abs(a - b) <= 1e-6 * (1 + std::abs(a))
                          : std::isnan(a) == std::isnan(b);
}

// On the CPU; the device, if there is one, must give the same. Weights 1 unless given.
Result run_ctc(const Array& x, const std::vector<int32_t>& frames,
               const std::vector<std::vector<int>>& labels, int blank,
               std::vector<float> weights = {}) {
  if (weights.empty()) weights.assign(frames.size(), 1.0f);
  const Result result = run_ctc({}, x, frames, labels, blank, weights);
  if (no_gpu().empty()) {
    const Result device = run_ctc({Device::cuda, Math::exact}, x, frames, labels, blank, weights);
    EXPECT(device.infeasible == result.infeasible);
    EXPECT(std::ranges::equal(device.losses, result.losses, same));
    EXPECT(std::ranges::equal(device.dlogits, result.dlogits, same));
  }
  return result;
}

Array zeros(int64_t T, int64_t V) { return {.shape = {T, V}, .data = std::vector<double>(T * V)}; }

bool all_of(const std::vector<double>& values, size_t begin, size_t end, auto&& what) {
  return std::all_of(values.begin() + begin, values.begin() + end, what);
}
bool finite(double x) { return std::isfinite(x); }
bool is_zero(double x) { return x == 0; }
bool is_nan(double x) { return std::isnan(x); }

// dims: units, labels at most. in: logits [T, V], labels [B, most] (behind the last: -1), room for
// the starts of labels, weights
std::vector<int> labels_of(const Array& in, int64_t b) {
  std::vector<int> labels;
  for (int64_t i = 0; i < in.shape[1] && in.at(b, i) >= 0; ++i)
    labels.push_back(static_cast<int>(in.at(b, i)));
  return labels;
}

std::vector<Array> inputs(const Case& c, Fill& fill) {
  const int64_t V = c.dims[0], most = c.dims[1];
  Array labels{.shape = {c.B(), most},
               .data = std::vector<double>(c.B() * most, -1),
               .gradient = false,
               .per_utterance = true,
               .on_host = true};
  for (int64_t b = 0; b < c.B(); ++b) {
    const int64_t count = std::min<int64_t>(most, c.frames[b] / 2);  // room for repeats
    for (int64_t i = 0; i < count; ++i)
      labels.at(b, i) = 1 + fill.below(static_cast<uint32_t>(V - 1));
  }
  Array weights = fill.normal({c.B()}), starts = fill.normal({c.B(), 2});
  weights.gradient = false, weights.per_utterance = weights.on_host = true;
  starts.gradient = false, starts.per_utterance = starts.on_host = true;
  return {fill.frames(c, V, 3), labels, starts, weights};
}

std::vector<Array> oracle(std::span<const Array> in, const Case& c) {
  Array losses{.shape = {c.B()}, .data = {}, .per_utterance = true};
  for (int b = 0; b < c.B(); ++b)
    losses.data.push_back(recursion(in[0], c.segments().starts[b], c.segments().starts[b + 1],
                                    labels_of(in[1], b), 0));
  return {losses};
}

// Labels are moved together in the memory of the padded ones.
CtcTargets targets(std::span<const Var> in, int64_t B) {
  static const int32_t none = 0;
  if (B == 0) return {{}, {&none, 1}};
  const std::span<int32_t> padded = as_integers(in[1]);
  const std::span<int32_t> starts = as_integers(in[2]).first(B + 1);
  const int64_t most = in[1].value.width();
  starts[0] = 0;
  for (int64_t b = 0; b < B; ++b) {
    starts[b + 1] = starts[b];
    for (int64_t i = 0; i < most && padded[b * most + i] >= 0; ++i)
      padded[starts[b + 1]++] = padded[b * most + i];
  }
  return {padded.first(starts[B]), starts};
}

std::vector<Var> run(Tape& t, std::span<const Var> in, const Case& c) {
  return {ctc(t, in[0], c.segments(), targets(in, c.B()), as_floats(in[3]), 0).losses};
}

const RegisterOp spec(OpSpec{
    .name = "ctc",
    .cases = {{.frames = {1}, .dims = {2, 1}},
              {.frames = {7, 1, 33}, .dims = {5, 9}},
              {.frames = {31, 2, 64, 3}, .dims = {32, 40}},
              {.frames = {}, .dims = {8, 3}},
              {.frames = {1500}, .dims = {32, 400}, .bench = true},
              {.frames = {499, 501, 487, 512, 420, 433, 530, 541, 399, 410, 600, 350, 499, 499, 320,
                          480},
               .dims = {32, 150},
               .bench = true}},
    .inputs = inputs,
    .oracle = oracle,
    .run = run,
    .cost =
        [](const Case& c) {
          const double states = 2.0 * c.T() * c.dims[1], n = static_cast<double>(c.T() * c.dims[0]);
          return Cost{.bytes = 8 * states + 4 * n, .flops = 60 * states + 20 * n};
        },
    .cuda = true,
    // losses are f32; a gradient is rounded once
    .roundings = 0,
    .gradient_roundings = 1,
    .loss = true,
});

}  // namespace

TEST_CASE("ctc: all paths enumerated") {
  Fill fill(11);
  for (int round = 0; round < 300; ++round) {
    const int64_t T = 1 + fill.below(6), V = 2 + fill.below(3);
    const int blank = static_cast<int>(fill.below(static_cast<uint32_t>(V)));
    const Array x = fill.normal({T, V}, 2);
    double total = 0;
    for (const auto& [labels, p] : all_labellings(x, blank)) {
      total += p;
      if (labels.size() > 3) continue;
      const auto frames = static_cast<int32_t>(T);
      const Result got = round < 5 ? run_ctc(x, {frames}, {labels}, blank)
                                   : run_ctc({}, x, {frames}, {labels}, blank, {1.0f});
      EXPECT(got.infeasible == 0);
      EXPECT(got.losses[0] == doctest::Approx(-std::log(p)).epsilon(1e-6));
    }
    EXPECT(total == doctest::Approx(1));
  }
}

TEST_CASE("ctc: gradients are differences of the sum over all paths") {
  Fill fill(12);
  for (int round = 0; round < 20; ++round) {
    const int64_t T = 2 + fill.below(4), V = 2 + fill.below(3);
    Array x = fill.normal({T, V}, 2);
    std::vector<int> labels;
    for (uint32_t i = fill.below(4); i > 0; --i)
      labels.push_back(1 + static_cast<int>(fill.below(static_cast<uint32_t>(V - 1))));
    const Result got = run_ctc(x, {static_cast<int32_t>(T)}, {labels}, 0);
    if (got.infeasible) continue;
    for (int64_t k = 0; k < T * V; ++k) {
      const double at = x.data[k], h = 1e-5;
      x.data[k] = at + h;
      const double above = -std::log(all_labellings(x, 0)[labels]);
      x.data[k] = at - h;
      const double below = -std::log(all_labellings(x, 0)[labels]);
      x.data[k] = at;
      EXPECT(std::abs(got.dlogits[k] - (above - below) / (2 * h)) < 1e-6);
    }
  }
}

TEST_CASE("ctc: which pairs have a path") {
  struct Edge {
    int32_t frames;
    std::vector<int> labels;
    bool feasible;
  };
  const std::vector<Edge> edges{
      {3, {}, true},         {0, {}, true},         {0, {1}, false},       {1, {1}, true},
      {2, {1, 2, 3}, false}, {3, {1, 2, 3}, true},  {3, {1, 1, 2}, false}, {4, {1, 1, 2}, true},
      {5, {2, 2, 2}, true},  {4, {2, 2, 2}, false},
  };
  std::vector<int32_t> frames;
  std::vector<std::vector<int>> labels;
  for (const Edge& e : edges) frames.push_back(e.frames), labels.push_back(e.labels);
  const int64_t total = std::accumulate(frames.begin(), frames.end(), 0), V = 4;
  Fill fill(13);
  const Array x = fill.normal({total, V}, 2);
  const Result got = run_ctc(x, frames, labels, 0);
  size_t first = 0;
  for (size_t e = 0; e < edges.size(); ++e) {
    const size_t last = first + edges[e].frames * V;
    const double expected = recursion(x, first / V, last / V, labels[e], 0);
    EXPECT(std::isfinite(expected) == edges[e].feasible);
    if (edges[e].feasible)
      EXPECT(got.losses[e] == doctest::Approx(expected).epsilon(1e-6));
    else
      EXPECT(got.losses[e] == 0);
    EXPECT(all_of(got.dlogits, first, last, edges[e].feasible ? finite : is_zero));
    first = last;
  }
  EXPECT(got.infeasible == 4);
}

TEST_CASE("ctc: labels that are no units") {
  for (const int bad : {-1, 0, 4, 1 << 30}) {
    const Error e = test::error_of([&] { run_ctc(zeros(6, 4), {3, 3}, {{1}, {1, bad}}, 0); });
    EXPECT(e.kind == Kind::input);
    EXPECT(e.message.find("utterance 1") != std::string::npos);
  }
  const Error blank = test::error_of([&] { run_ctc(zeros(3, 4), {3}, {{1}}, 4); });
  EXPECT(blank.kind == Kind::internal);
}

TEST_CASE("ctc: logits that are not finite stay in their utterance") {
  Fill fill(14);
  for (const float bad : {kNan, kInf}) {
    Array x = fill.normal({15, 4}, 2);
    x.at(7, 3) = bad;  // a unit that no label needs
    const Result got = run_ctc(x, {5, 5, 5}, {{1, 2}, {2, 1}, {3}}, 0);
    EXPECT(std::isfinite(got.losses[0]));
    EXPECT(std::isnan(got.losses[1]));
    EXPECT(std::isfinite(got.losses[2]));
    EXPECT(all_of(got.dlogits, 0, 20, finite));
    EXPECT(all_of(got.dlogits, 20, 40, is_nan));
    EXPECT(all_of(got.dlogits, 40, 60, finite));
  }
  Array x = fill.normal({10, 4}, 2);
  for (int64_t t = 0; t < 10; ++t) x.at(t, 3) = -kInf;
  const Result got = run_ctc(x, {5, 5}, {{1, 2}, {3}}, 0);
  EXPECT(std::isfinite(got.losses[0]));
  EXPECT(all_of(got.dlogits, 0, 20, finite));
  EXPECT(got.infeasible == 0);  // it is long enough, but label 3 has probability 0 in every frame
  EXPECT(got.losses[1] == 0);
  EXPECT(all_of(got.dlogits, 20, 40, is_zero));
}

TEST_CASE("ctc: logits of one path, 1e4 above all others") {
  Array x = zeros(6, 4);
  for (const auto& [t, v] : {std::pair{0, 0}, {1, 1}, {2, 1}, {3, 0}, {4, 2}, {5, 2}})
    x.at(t, v) = 1e4;
  const Result right = run_ctc(x, {6}, {{1, 2}}, 0);
  EXPECT(right.losses[0] == 0);
  const Result wrong = run_ctc(x, {6}, {{3}}, 0);
  EXPECT(wrong.losses[0] == doctest::Approx(recursion(x, 0, 6, {3}, 0)).epsilon(1e-6));
  EXPECT(wrong.losses[0] > 3.9e4);  // four of the frames say neither blank nor 3
  EXPECT(all_of(wrong.dlogits, 0, wrong.dlogits.size(), finite));
}

TEST_CASE("ctc: gradients sum to zero in a frame and do not see a shift of its logits") {
  Fill fill(15);
  const Array x = fill.normal({40, 32}, 3);
  const std::vector<int> labels{1, 2, 2, 5, 31, 31, 7};
  const Result got = run_ctc(x, {40}, {labels}, 0, {0.25f});
  Array shifted = x;
  for (int64_t t = 0; t < 40; ++t)
    for (int64_t v = 0; v < 32; ++v) shifted.at(t, v) += 64 * (t % 3);
  const Result again = run_ctc(shifted, {40}, {labels}, 0, {0.25f});
  for (int64_t t = 0; t < 40; ++t) {
    double sum = 0;
    for (int64_t v = 0; v < 32; ++v) sum += got.dlogits[t * 32 + v];
    EXPECT(std::abs(sum) < 1e-7);
  }
  for (size_t k = 0; k < got.dlogits.size(); ++k)
    EXPECT(std::abs(got.dlogits[k] - again.dlogits[k]) < 1e-5);
}

TEST_CASE("ctc: 1500 frames and 400 labels keep 1e-6") {
  Fill fill(16);
  const Array x = fill.normal({1500, 32}, 3);
  std::vector<int> labels;
  for (int i = 0; i < 400; ++i) labels.push_back(1 + static_cast<int>(fill.below(31)));
  const Result got = run_ctc(x, {1500}, {labels}, 0);
  EXPECT(got.losses[0] == doctest::Approx(recursion(x, 0, 1500, labels, 0)).epsilon(1e-6));
}

TEST_CASE("ctc: more labels than a block of threads") {
  Fill fill(17);
  const Array x = fill.normal({1100, 4}, 3);
  std::vector<int> labels;
  for (int i = 0; i < 1050; ++i) labels.push_back(1 + i % 3);
  const Result got = run_ctc(x, {1100}, {labels}, 0);
  EXPECT(got.losses[0] == doctest::Approx(recursion(x, 0, 1100, labels, 0)).epsilon(1e-6));
}

}  // namespace sft
