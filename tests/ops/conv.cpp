#include "tests/ops/conv.h"

#include <deque>

namespace sft {

const SlotList& slots_of(std::span<const int32_t> samples, int32_t hop) {
  static std::deque<SlotList> kept;
  return kept.emplace_back(samples, hop);
}

void norm_rows(Array& x, const Array& weight, const Array& bias, double eps) {
  const int64_t C = x.shape.back();
  for (int64_t t = 0; t < x.shape[0]; ++t) {
    double mean = 0, variance = 0;
    for (int64_t c = 0; c < C; ++c) mean += x.at(t, c) / C;
    for (int64_t c = 0; c < C; ++c) variance += std::pow(x.at(t, c) - mean, 2) / C;
    for (int64_t c = 0; c < C; ++c)
      x.at(t, c) = (x.at(t, c) - mean) / std::sqrt(variance + eps) * weight.data[c] + bias.data[c];
  }
}

Array naive_conv(const Array& x, const Array& weight, const Array* bias, int32_t stride,
                 const SlotList& in) {
  const int64_t Cout = weight.shape[0], Cin = weight.shape[1], K = weight.shape[2];
  const SlotList out = in.next(static_cast<int32_t>(K), stride);
  const Slots slots = out.view();
  Array y{.shape = {slots.rows(), Cout}, .data = std::vector<double>(slots.rows() * Cout)};
  for (int b = 0; b < slots.batch(); ++b)
    for (int64_t t = slots.starts[b]; t < slots.starts[b] + slots.valid[b]; ++t)
      for (int64_t o = 0; o < Cout; ++o) {
        double sum = bias ? bias->data[o] : 0;
        for (int64_t j = 0; j < K; ++j)
          for (int64_t i = 0; i < Cin; ++i)
            sum += weight.data[(o * Cin + i) * K + j] * x.data[(t * stride + j) * Cin + i];
        y.at(t, o) = sum;
      }
  return y;
}

namespace {

std::vector<Array> results(Where where, std::span<const Array> inputs, const Array& dy,
                           const std::function<Var(Tape&, std::span<const Var>)>& op) {
  OpRun run(/*poison=*/true, 0, 0, where);
  Tape tape(run.ctx);
  const std::vector<Var> vars = run.place(tape, inputs);
  const Var y = op(tape, vars);
  tape.seed(y, run.write(dy, y.value.dtype));
  tape.backward();
  std::vector<Array> out{OpRun::read(y)};
  for (const Var& v : vars) out.push_back(OpRun::read(tape.gradient(v)));
  return out;
}

double distance(const Array& ours, const Array& expected) {
  double squares = 0, worst = 0;
  for (const double v : expected.data) squares += v * v;
  const double rms = std::sqrt(squares / static_cast<double>(expected.data.size()));
  for (size_t i = 0; i < expected.data.size(); ++i) {
    const double e = std::abs(ours.data[i] - expected.data[i]) / (std::abs(expected.data[i]) + rms);
    worst = e <= worst ? worst : std::isfinite(e) ? e : INFINITY;
  }
  return worst;
}

}  // namespace

std::vector<double> distances_from_cpu(Math math, std::span<const Array> inputs, const Array& dy,
                                       const std::function<Var(Tape&, std::span<const Var>)>& op) {
  const std::vector<Array> ours = results({Device::cuda, math}, inputs, dy, op);
  const std::vector<Array> expected = results({}, inputs, dy, op);
  std::vector<double> out;
  for (size_t i = 0; i < ours.size(); ++i) out.push_back(distance(ours[i], expected[i]));
  return out;
}

}  // namespace sft
