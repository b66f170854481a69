// What an op computes, on what, and what it costs. From one spec come its tests on every device and
// its rows in sft-bench. A spec is one file in tests/ops/, and registers itself:
//
//   static const RegisterOp layer_norm(OpSpec{
//       .name = "layer_norm",
//       .cases = {{.frames = {7, 1, 33}, .dims = {48}}, {.frames = {812, 399}, .dims = {768},
//       .bench = true}}, .inputs = [](const Case& c, Fill& fill) -> std::vector<Array> { ... },
//       .oracle = ...naive, in double, forward only...,
//       .run = ...the function of autograd/functions.h...,
//   });
//
// Tests of a case that is no bench case: forward against the oracle; backward against central
// differences of the oracle; a gradient that is added to; packed against each utterance alone;
// constants (no gradient wanted) in place of each input; twice the same bits; the memory of a dry
// step. A spec with .cuda runs them on the device too (emulated in `tests`), in f32 and in bf16;
// there the second run takes the threads of each block in another order.
#pragma once

#include <algorithm>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "autograd/tape.h"
#include "engine/segments.h"

namespace sft {

struct Array {
  Shape shape;
  std::vector<double> data;
  bool gradient = true;        // differentiable
  bool per_frame = false;      // dimension 0 is the frames of the batch: cut by utterance
  bool per_utterance = false;  // dimension 0 is the utterances of the batch
  bool on_host = false;        // read by run() itself: labels, weights of losses

  double& at(int64_t i, int64_t j) { return data[i * shape.back() + j]; }
  double at(int64_t i, int64_t j) const { return data[i * shape.back() + j]; }
};

struct Case {
  std::vector<int32_t> frames = {1};  // of each utterance
  std::vector<int64_t> dims = {};     // further sizes, as the op means them
  bool bench = false;                 // a size for sft-bench; too large for the oracle
  bool training = false;              // as the op means it: dropout on, ...
  int32_t first_utterance = 0;        // index of the first one (random numbers depend on it)

  int64_t T() const;
  int64_t B() const { return static_cast<int64_t>(frames.size()); }
  Segments segments() const;  // good as long as the case lives

  mutable SegmentList made_segments = {};
};

// Fresh random inputs; the seed is printed when a test fails. Values are exact in f32.
class Fill {
 public:
  explicit Fill(uint64_t seed) : draws_(seed, 0, 0, fnv1a("fill")) {}
  Array normal(Shape shape, double deviation = 1);
  Array frames(const Case& c, int64_t width, double deviation = 1);  // [T, width], per_frame
  Array uniform(Shape shape, double low, double high);
  uint32_t below(uint32_t n);  // n > 0

 private:
  Draws draws_;
};

struct Cost {
  double bytes = 0, flops = 0;  // forward
};

// Where a run computes, and in which arithmetic.
struct Where {
  Device device = Device::cpu;
  Math math = Math::exact;
  Dtype compute() const {  // what its activations are made of
    return device == Device::cuda && math == Math::bf16 ? Dtype::bf16 : Dtype::f32;
  }
};

struct OpSpec {
  std::string name;
  std::vector<Case> cases;
  std::function<std::vector<Array>(const Case&, Fill&)> inputs;
  std::function<std::vector<Array>(std::span<const Array>, const Case&)> oracle;  // shapes and data
  std::function<std::vector<Var>(Tape&, std::span<const Var>, const Case&)> run;
  std::function<Cost(const Case&)> cost = [](const Case&) { return Cost{}; };
  bool cuda = false;              // has CUDA kernels
  std::vector<Math> narrow = {};  // modes in which the CPU multiplies 16-bit numbers here
  bool narrow_in(Math math) const {
    return std::find(narrow.begin(), narrow.end(), math) != narrow.end();
  }
  // Terms of the longest sum behind one output: the tolerance grows with its square root.
  double terms = 1;
  // On a device, roundings to bf16 on the way to an output, and to a gradient: half a unit of 2^-8
  // each. On the CPU, such products one behind the other.
  double roundings = 1, gradient_roundings = 2;
  double products = 1, gradient_products = 2;
  // Errors are measured relative to |value| + rms of the output.
  double forward_tolerance(Where where = {}) const;
  double gradient_tolerance(Where where = {}) const;
  // The output is losses, and the last input (gradient = false) holds their weights: backward gives
  // the gradient of sum(weights * losses), whatever dy is.
  bool loss = false;
  bool packs = true;  // packed == alone holds (per-frame inputs, outputs per frame or utterance)
  // Largest error of differences of the oracle itself; piecewise ops may need smaller steps.
  double step = 1e-4;
};

std::vector<OpSpec>& op_specs();

// The numbers of an input on the host, as what ops take: in place, so they live as long.
std::span<int32_t> as_integers(const Var& on_host);
std::span<const float> as_floats(const Var& on_host);

struct RegisterOp {
  explicit RegisterOp(OpSpec spec) { op_specs().push_back(std::move(spec)); }
};

// What specs are run with.
constexpr uint64_t kSpecSeed = 1234;
constexpr uint32_t kSpecUpdate = 3;

// What dropout multiplies element (t, column) of a packed [T, C] with, by engine/rng.h alone.
double dropout_factor(const Case& c, Dropout dropout, int64_t t, int64_t column, int64_t C);

// The CPU, and the device if there is one, exact and in bf16.
std::vector<Where> everywhere();
// The device that Device::cuda means in this process; fails where there is none.
cuda::Runtime& shared_gpu();
std::string no_gpu();  // why there is none; empty if there is

// Inputs of a case in an arena, as variables; outputs of one run and the gradients for random dy.
class OpRun {
 public:
  // device_bytes: of each of the two arenas, on a device; on the CPU there is always enough.
  OpRun(bool poison, uint64_t seed = 0, uint32_t update = 0, Where where = {},
        int64_t device_bytes = int64_t{1} << 28);
  std::vector<Var> place(Tape& t, std::span<const Array> inputs);
  // A tensor with these values, and back. A matrix of activations has the type of ctx.compute().
  Tensor write(const Array& values, Dtype dtype);
  static Array read(Tensor t);

  Arena host, acts, scratch;
  Prepared prepared;
  Context ctx;

 private:
  static cuda::Runtime* gpu(Where where);
};

// All tests of one case; returns what is wrong, one line each.
std::vector<std::string> check_case(const OpSpec& spec, const Case& c, uint64_t seed,
                                    Where where = {});
// The worst output of a case against the oracle, in units of the tolerance.
double forward_error(const OpSpec& spec, const Case& c, uint64_t seed, Where where = {});
// Forward and backward on the CPU and on the device, on the same numbers; for sizes that the oracle
// is too slow for.
std::vector<std::string> check_pair(const OpSpec& spec, const Case& c, uint64_t seed, Math math);

}  // namespace sft
