#include "tests/op_spec.h"

#include <fmt/format.h>

#include <omp.h>

#include <cmath>
#include <cstring>
#include <numeric>

#include "engine/cuda/emulator/thread_order.h"
#include "engine/device.h"
#include "engine/formats/numbers.h"

namespace sft {

int64_t Case::T() const { return std::accumulate(frames.begin(), frames.end(), int64_t{0}); }

Segments Case::segments() const {
  if (made_segments.view().starts.empty()) {
    std::vector<int32_t> utterances(frames.size());
    std::iota(utterances.begin(), utterances.end(), first_utterance);
    made_segments = SegmentList(frames, utterances);
  }
  return made_segments.view();
}

Array Fill::normal(Shape shape, double deviation) {
  Array a{.shape = shape, .data = std::vector<double>(shape.count())};
  for (double& x : a.data) x = static_cast<float>(draws_.normal() * deviation);
  return a;
}

Array Fill::frames(const Case& c, int64_t width, double deviation) {
  Array a = normal({c.T(), width}, deviation);
  a.per_frame = true;
  return a;
}

Array Fill::uniform(Shape shape, double low, double high) {
  Array a{.shape = shape, .data = std::vector<double>(shape.count())};
  for (double& x : a.data) x = static_cast<float>(low + (high - low) * draws_.uniform());
  return a;
}

uint32_t Fill::below(uint32_t n) {
  CHECK(n > 0, "inputs: nothing to choose from");
  return draws_.below(n);
}

namespace {

// On a device, half a unit in the last place of bf16, twice: of our rounding and of an error before
// it. On the CPU both sides of a product are rounded, number by number: of each product's errors,
// 2.4e-3 of its rms in bf16 and 2.6e-4 in fast16, seven times as much: some outputs are sums of few
// products, and there are tens of thousands of them.
double rounded(const OpSpec& spec, Where where, double roundings, double products) {
  if (where.math == Math::exact) return 0;
  if (where.device == Device::cuda) return roundings * 0x1p-8;
  if (!spec.narrow_in(where.math)) return 0;
  return products * (where.math == Math::bf16 ? 1.7e-2 : 1.8e-3);
}

}  // namespace

double OpSpec::forward_tolerance(Where where) const {
  return (8 + 2 * std::sqrt(terms)) * 0x1p-23 + rounded(*this, where, roundings, products);
}
double OpSpec::gradient_tolerance(Where where) const {
  return (64 + 8 * std::sqrt(terms)) * 0x1p-23 + 1e-6 +
         rounded(*this, where, gradient_roundings, gradient_products);
}

std::span<int32_t> as_integers(const Var& on_host) {
  const std::span<const float> from = as_floats(on_host);
  auto* to = static_cast<int32_t*>(on_host.value.data);
  for (size_t i = 0; i < from.size(); ++i) {
    const auto number = static_cast<int32_t>(from[i]);
    std::memcpy(to + i, &number, sizeof(number));
  }
  return {to, from.size()};
}
std::span<const float> as_floats(const Var& on_host) {
  return {on_host.value.f32(), static_cast<size_t>(on_host.value.count())};
}

std::vector<OpSpec>& op_specs() {
  static std::vector<OpSpec> specs;
  return specs;
}

double dropout_factor(const Case& c, Dropout dropout, int64_t t, int64_t column, int64_t C) {
  if (!dropout) return 1;
  const Segments segments = c.segments();
  int b = 0;
  while (segments.starts[b + 1] <= t) ++b;
  const auto call = static_cast<uint32_t>((t - segments.starts[b]) * ((C + 7) / 8) + column / 8);
  const PhiloxWords words = philox(kSpecSeed, call, static_cast<uint32_t>(segments.utterances[b]),
                                   kSpecUpdate, dropout.site);
  const bool keep = bits16(words, static_cast<int>(column % 8)) >= dropout.threshold();
  return keep ? 1 / (1 - dropout.threshold() / 65536.0) : 0;
}

cuda::Runtime& shared_gpu() {
  static const std::unique_ptr<cuda::Runtime> gpu = open_device("cuda");
  return *gpu;
}

std::string no_gpu() {
  try {
    shared_gpu();
  } catch (const Error& error) {
    return error.message;
  }
  return "";
}

std::vector<Where> everywhere() {
  if (!no_gpu().empty()) return {{}};
  return {{}, {Device::cuda, Math::exact}, {Device::cuda, Math::bf16}};
}

constexpr int64_t kAddresses = int64_t{1} << 36;  // reserved for an arena on the CPU

OpRun::OpRun(bool poison, uint64_t seed, uint32_t update, Where where, int64_t device_bytes)
    : host(kAddresses),
      acts(where.device == Device::cuda ? device_bytes : kAddresses, poison, gpu(where)),
      scratch(where.device == Device::cuda ? device_bytes : kAddresses, poison, gpu(where)),
      prepared(gpu(where)),
      ctx{.device = where.device,
          .acts = acts,
          .scratch = scratch,
          .prepared = prepared,
          .rng = {seed, update},
          .gpu = gpu(where),
          .math = where.math} {}

cuda::Runtime* OpRun::gpu(Where where) {
  return where.device == Device::cuda ? &shared_gpu() : nullptr;
}

Tensor OpRun::write(const Array& values, Dtype dtype) {
  std::vector<float> floats(values.data.begin(), values.data.end());
  std::vector<std::byte> bytes(bytes_of(dtype, values.shape.count()));
  from_f32(floats.data(), dtype, bytes.data(), values.shape.count());
  const Tensor to = ctx.activation(values.shape, dtype);
  if (ctx.gpu)
    ctx.gpu->upload(to.data, bytes.data(), to.bytes());
  else
    std::copy(bytes.begin(), bytes.end(), static_cast<std::byte*>(to.data));
  return to;
}

std::vector<Var> OpRun::place(Tape& t, std::span<const Array> inputs) {
  std::vector<Var> vars;
  for (const Array& a : inputs) {
    if (a.on_host) {
      vars.push_back({host.tensor(a.shape)});
      std::copy(a.data.begin(), a.data.end(), vars.back().value.f32());
      continue;
    }
    const Tensor value = write(a, a.per_frame ? ctx.compute() : Dtype::f32);
    vars.push_back(a.gradient ? t.variable(value) : Var{value});
  }
  return vars;
}

Array OpRun::read(Tensor t) {
  Array a{.shape = t.shape, .data = {}};
  const int64_t width = t.shape.rank() ? t.shape.back() : 1;
  const int64_t span = t.rows() ? (t.rows() - 1) * t.row_stride + width : 0;
  std::vector<std::byte> bytes(bytes_of(t.dtype, span));
  if (t.device == Device::cuda)
    shared_gpu().download(bytes.data(), t.data, static_cast<int64_t>(bytes.size()));
  else if (span)
    std::memcpy(bytes.data(), t.data, bytes.size());
  std::vector<float> floats(span);
  to_f32(t.dtype, bytes.data(), floats.data(), span);
  for (int64_t r = 0; r < t.rows(); ++r)
    for (int64_t c = 0; c < width; ++c) a.data.push_back(floats[r * t.row_stride + c]);
  return a;
}

namespace {

struct Result {
  std::vector<Array> outputs, gradients;  // gradients: empty data where none was wanted
  std::pair<int64_t, int64_t> peaks;      // bytes of activations and scratch
};

using Modify = std::function<void(OpRun&, Tape&, std::vector<Var>&)>;

// Runs forward and, with the given dy, backward.
Result run_op(const OpSpec& spec, const Case& c, Where where, std::span<const Array> inputs,
              std::span<const Array> dy, const Modify& modify = {},
              int64_t device_bytes = int64_t{1} << 28) {
  OpRun run(/*poison=*/true, kSpecSeed, kSpecUpdate, where, device_bytes);
  Tape tape(run.ctx);
  std::vector<Var> vars = run.place(tape, inputs);
  if (modify) modify(run, tape, vars);
  const std::vector<Var> outs = spec.run(tape, vars, c);
  Result result;
  for (const Var& out : outs) result.outputs.push_back(OpRun::read(out));
  for (size_t i = 0; i < dy.size(); ++i) {
    if (spec.loss) {
      tape.loss(outs[i]);
      continue;
    }
    if (outs[i].slot) tape.seed(outs[i], run.write(dy[i], outs[i].value.dtype));
  }
  if (!dy.empty()) tape.backward();
  for (const Var& v : vars) {
    const Tensor g = tape.gradient(v);
    result.gradients.push_back(g ? OpRun::read(g) : Array{});
  }
  result.peaks = {run.acts.peak(), run.scratch.peak()};
  return result;
}

// The memory that the same run takes in a dry step.
std::pair<int64_t, int64_t> dry_peaks(const OpSpec& spec, const Case& c, Where where,
                                      std::span<const Array> inputs, std::span<const Array> dy) {
  OpRun run(/*poison=*/false, kSpecSeed, kSpecUpdate, where);
  Tape tape(run.ctx);
  std::vector<Var> vars = run.place(tape, inputs);
  run.ctx.dry = true;
  const std::vector<Var> outs = spec.run(tape, vars, c);
  for (size_t i = 0; i < dy.size(); ++i) {
    if (spec.loss)
      tape.loss(outs[i]);
    else if (outs[i].slot)
      tape.seed(outs[i], run.ctx.activation(dy[i].shape, outs[i].value.dtype));
  }
  tape.backward();
  return {run.acts.peak(), run.scratch.peak()};
}

double rms(const Array& a) {
  double sum = 0;
  for (double x : a.data) sum += x * x;
  return a.data.empty() ? 0 : std::sqrt(sum / static_cast<double>(a.data.size()));
}

// Largest |a - b| / (|b| + rms b); infinite for anything that is not finite or of another shape.
double distance(const Array& a, const Array& b) {
  if (a.shape != b.shape || a.data.size() != b.data.size()) return INFINITY;
  const double scale = rms(b) + 1e-30;
  double worst = 0;
  for (size_t i = 0; i < a.data.size(); ++i) {
    const double error = std::abs(a.data[i] - b.data[i]) / (std::abs(b.data[i]) + scale);
    worst = error <= worst ? worst : std::isfinite(error) ? error : INFINITY;
  }
  return worst;
}

double objective(const OpSpec& spec, const Case& c, std::span<const Array> inputs,
                 std::span<const Array> dy) {
  const std::vector<Array> outs = spec.oracle(inputs, c);
  double total = 0;
  for (size_t i = 0; i < dy.size(); ++i)
    for (size_t k = 0; k < dy[i].data.size(); ++k) total += dy[i].data[k] * outs[i].data[k];
  return total;
}

// Central differences of the oracle at up to `most` elements of input i, and our gradient there.
std::pair<Array, Array> differences(const OpSpec& spec, const Case& c, std::vector<Array> inputs,
                                    std::span<const Array> dy, size_t i, const Array& ours,
                                    Fill& fill) {
  constexpr int64_t kMost = 40;
  const auto count = static_cast<int64_t>(inputs[i].data.size());
  Array numeric, chosen;
  for (int64_t n = 0; n < std::min(count, kMost); ++n) {
    const int64_t k = count <= kMost ? n : fill.below(static_cast<uint32_t>(count));
    const double x = inputs[i].data[k], h = spec.step * (std::abs(x) + 1);
    inputs[i].data[k] = x + h;
    const double above = objective(spec, c, inputs, dy);
    inputs[i].data[k] = x - h;
    const double below = objective(spec, c, inputs, dy);
    inputs[i].data[k] = x;
    numeric.data.push_back((above - below) / (2 * h));
    chosen.data.push_back(ours.data[k]);
  }
  numeric.shape = chosen.shape = {static_cast<int64_t>(numeric.data.size())};
  return {chosen, numeric};
}

// Inputs that a compute type holds exactly: the oracle then sees the same ones.
void round_to(Array& a, Dtype compute) {
  if (compute != Dtype::bf16 || a.on_host) return;
  std::vector<float> floats(a.data.begin(), a.data.end());
  std::vector<uint16_t> narrow(floats.size());
  const auto count = static_cast<int64_t>(floats.size());
  f32_to_bf16(floats.data(), narrow.data(), count);
  bf16_to_f32(narrow.data(), floats.data(), count);
  std::copy(floats.begin(), floats.end(), a.data.begin());
}

Array cut(const Array& a, const Case& c, int b) {
  if (!a.per_frame && !a.per_utterance) return a;
  const int64_t row = a.shape.count() / std::max<int64_t>(a.shape[0], 1);
  const int64_t first = a.per_utterance ? b : c.segments().starts[b];
  const int64_t rows = a.per_utterance ? 1 : c.frames[b];
  std::vector<int64_t> dims(a.shape.dims().begin(), a.shape.dims().end());
  dims[0] = rows;
  Array part = a;
  part.shape = Shape(std::span<const int64_t>(dims));
  part.data.assign(a.data.begin() + first * row, a.data.begin() + (first + rows) * row);
  return part;
}

// Another number of threads, for a while: 16-bit products depend on it nowhere.
class OtherThreads {
 public:
  explicit OtherThreads(int number) { omp_set_num_threads(number); }
  ~OtherThreads() { omp_set_num_threads(before_); }
  OtherThreads(const OtherThreads&) = delete;

 private:
  int before_ = omp_get_max_threads();
};

struct Checker {
  const OpSpec& spec;
  const Case& c;
  Where where;
  std::vector<Array> inputs;
  std::vector<Array> dy;
  Result ours;
  std::vector<std::string> wrong;

  void expect(double error, double tolerance, const std::string& what) {
    if (!(error <= tolerance))
      wrong.push_back(
          fmt::format("{}: relative error {:.3g}, allowed {:.3g}", what, error, tolerance));
  }

  void against_oracle(Fill& fill) {
    const std::vector<Array> expected = spec.oracle(inputs, c);
    for (size_t i = 0; i < expected.size(); ++i)
      expect(distance(ours.outputs[i], expected[i]), spec.forward_tolerance(where),
             fmt::format("output {} against the oracle", i));
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!inputs[i].gradient || inputs[i].data.empty()) continue;
      if (ours.gradients[i].data.empty()) {
        wrong.push_back(fmt::format("gradient {}: none arrived", i));
        continue;
      }
      const auto [chosen, numeric] = differences(spec, c, inputs, dy, i, ours.gradients[i], fill);
      Array scale = ours.gradients[i];  // errors relative to the whole gradient's rms
      const double base = rms(scale);
      double worst = 0;
      for (size_t k = 0; k < chosen.data.size(); ++k) {
        const double e =
            std::abs(chosen.data[k] - numeric.data[k]) / (std::abs(numeric.data[k]) + base + 1e-30);
        worst = e <= worst ? worst : std::isfinite(e) ? e : INFINITY;
      }
      expect(worst, spec.gradient_tolerance(where) + 10 * spec.step * spec.step,
             fmt::format("gradient {} against differences of the oracle", i));
    }
  }

  void added_to() {
    const Result twice =
        run_op(spec, c, where, inputs, dy, [&](OpRun& run, Tape& t, std::vector<Var>& vars) {
          for (Var& v : vars) {
            if (!v.slot) continue;
            const Array before{.shape = v.shape(),
                               .data = std::vector<double>(v.shape().count(), 2.5)};
            t.seed(v, run.write(before, v.value.dtype));
          }
        });
    for (size_t i = 0; i < inputs.size(); ++i) {
      if (!inputs[i].gradient || inputs[i].data.empty()) continue;
      Array expected = ours.gradients[i];
      for (double& x : expected.data) x += 2.5;
      expect(distance(twice.gradients[i], expected), 16 * 0x1p-23 + rounded(spec, where, 2, 0),
             fmt::format("gradient {} added to what was there", i));
    }
  }

  void constants() {
    for (size_t fixed = 0; fixed < inputs.size(); ++fixed) {
      if (!inputs[fixed].gradient) continue;
      const Result partial =
          run_op(spec, c, where, inputs, dy,
                 [&](OpRun&, Tape&, std::vector<Var>& vars) { vars[fixed].slot = nullptr; });
      for (size_t i = 0; i < inputs.size(); ++i)
        if (i != fixed && inputs[i].gradient && !inputs[i].data.empty())
          expect(distance(partial.gradients[i], ours.gradients[i]), 16 * 0x1p-23,
                 fmt::format("gradient {} with input {} a constant", i, fixed));
    }
  }

  void same_bits() {
    const cuda::emulator::OtherThreadOrder other;
    const OtherThreads number(spec.narrow_in(where.math) ? 3 : omp_get_max_threads());
    const Result again = run_op(spec, c, where, inputs, dy);
    for (size_t i = 0; i < ours.outputs.size(); ++i)
      if (again.outputs[i].data != ours.outputs[i].data)
        wrong.push_back(fmt::format("output {}: other bits in a second run", i));
    for (size_t i = 0; i < ours.gradients.size(); ++i)
      if (again.gradients[i].data != ours.gradients[i].data)
        wrong.push_back(fmt::format("gradient {}: other bits in a second run", i));
  }

  void dry() {
    const auto [acts, scratch] = dry_peaks(spec, c, where, inputs, dy);
    if (std::pair(acts, scratch) != ours.peaks)
      wrong.push_back(fmt::format("a dry step takes {} + {} bytes, a real one {} + {}", acts,
                                  scratch, ours.peaks.first, ours.peaks.second));
  }

  // Each utterance alone gives its rows of the pack; gradients of shared inputs add up.
  void alone() {
    std::vector<Array> totals(inputs.size());
    for (int b = 0; b < static_cast<int>(c.frames.size()); ++b) {
      Case one{.frames = {c.frames[b]},
               .dims = c.dims,
               .training = c.training,
               .first_utterance = c.first_utterance + b};
      std::vector<Array> part, part_dy;
      for (const Array& a : inputs) part.push_back(cut(a, c, b));
      for (const Array& a : dy) part_dy.push_back(cut(a, c, b));
      const Result result = run_op(spec, one, where, part, part_dy);
      for (size_t i = 0; i < dy.size(); ++i)
        compare(result.outputs[i], cut(with_kind(ours.outputs[i], dy[i]), c, b), ours.outputs[i],
                spec.forward_tolerance(where), fmt::format("output {}, utterance {} alone", i, b));
      for (size_t i = 0; i < inputs.size(); ++i) {
        if (ours.gradients[i].data.empty()) continue;
        if (inputs[i].per_frame || inputs[i].per_utterance)
          compare(result.gradients[i], cut(with_kind(ours.gradients[i], inputs[i]), c, b),
                  ours.gradients[i], spec.gradient_tolerance(where),
                  fmt::format("gradient {}, utterance {} alone", i, b));
        else if (totals[i].data.empty())
          totals[i] = result.gradients[i];
        else
          for (size_t k = 0; k < totals[i].data.size(); ++k)
            totals[i].data[k] += result.gradients[i].data[k];
      }
    }
    for (size_t i = 0; i < inputs.size(); ++i)
      if (!totals[i].data.empty())
        expect(distance(totals[i], ours.gradients[i]), spec.gradient_tolerance(where),
               fmt::format("gradient {} as the sum over utterances alone", i));
  }

  static Array with_kind(Array a, const Array& like) {
    a.per_frame = like.per_frame, a.per_utterance = like.per_utterance;
    return a;
  }

  // As expect(distance), but relative to the rms of the whole pack.
  void compare(const Array& a, const Array& b, const Array& whole, double tolerance,
               const std::string& what) {
    double worst = a.data.size() == b.data.size() ? 0 : INFINITY;
    for (size_t k = 0; k < std::min(a.data.size(), b.data.size()); ++k) {
      const double e = std::abs(a.data[k] - b.data[k]) / (std::abs(b.data[k]) + rms(whole) + 1e-30);
      worst = e <= worst ? worst : std::isfinite(e) ? e : INFINITY;
    }
    expect(worst, tolerance, what);
  }
};

}  // namespace

std::vector<std::string> check_case(const OpSpec& spec, const Case& c, uint64_t seed, Where where) {
  Fill fill(seed);
  Checker checker{spec, c, where, spec.inputs(c, fill), {}, {}, {}};
  for (Array& input : checker.inputs) round_to(input, where.compute());
  for (Array& out : spec.oracle(checker.inputs, c)) {
    Array dy = spec.loss ? checker.inputs.back() : fill.normal(out.shape);
    dy.per_frame = out.per_frame, dy.per_utterance = out.per_utterance;
    round_to(dy, where.compute());
    checker.dy.push_back(std::move(dy));
  }
  checker.ours = run_op(spec, c, where, checker.inputs, checker.dy);
  checker.against_oracle(fill);
  checker.added_to();
  checker.constants();
  checker.same_bits();
  checker.dry();
  if (spec.packs && c.frames.size() > 1) checker.alone();
  return checker.wrong;
}

double forward_error(const OpSpec& spec, const Case& c, uint64_t seed, Where where) {
  Fill fill(seed);
  std::vector<Array> inputs = spec.inputs(c, fill);
  for (Array& input : inputs) round_to(input, where.compute());
  const std::vector<Array> expected = spec.oracle(inputs, c);
  const std::vector<Array> ours = run_op(spec, c, where, inputs, {}).outputs;
  double worst = 0;
  for (size_t i = 0; i < expected.size(); ++i)
    worst = std::max(worst, distance(ours[i], expected[i]));
  return worst / spec.forward_tolerance(where);
}

std::vector<std::string> check_pair(const OpSpec& spec, const Case& c, uint64_t seed, Math math) {
  const int64_t room = std::min(shared_gpu().free_bytes() / 4, int64_t{8} << 30);
  Fill fill(seed);
  Checker checker{spec, c, {Device::cuda, math}, spec.inputs(c, fill), {}, {}, {}};
  for (Array& input : checker.inputs) round_to(input, checker.where.compute());
  for (const Array& out : run_op(spec, c, {}, checker.inputs, {}).outputs) {
    checker.dy.push_back(spec.loss ? checker.inputs.back() : fill.normal(out.shape));
    round_to(checker.dy.back(), checker.where.compute());
  }
  const Result cpu = run_op(spec, c, {}, checker.inputs, checker.dy);
  checker.ours = run_op(spec, c, checker.where, checker.inputs, checker.dy, {}, room);
  // Sums are longer than those of the small cases, and both sides round: four times as much.
  for (size_t i = 0; i < cpu.outputs.size(); ++i)
    checker.expect(distance(checker.ours.outputs[i], cpu.outputs[i]),
                   4 * spec.forward_tolerance(checker.where), fmt::format("output {}", i));
  for (size_t i = 0; i < cpu.gradients.size(); ++i)
    checker.expect(distance(checker.ours.gradients[i], cpu.gradients[i]),
                   4 * spec.gradient_tolerance(checker.where), fmt::format("gradient {}", i));
  return checker.wrong;
}

}  // namespace sft
