#include "bench/numerics.h"

#include <hwy/highway.h>
#include <hwy/targets.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "bench/random_weights.h"
#include "engine/audio/decode.h"
#include "engine/cpu/isa.h"
#include "models/extract.h"

namespace sft {
namespace {

// While it lives kernels are those of SSE2, or of the best instruction set if SSE2 was chosen.
class OtherIsa {
 public:
  OtherIsa() {
    const bool best = cpu::isa() == "scalar";
    constexpr int64_t kWider = HWY_AVX3 | HWY_AVX3_DL | HWY_AVX2 | HWY_SSE4 | HWY_SSSE3;
    hwy::DisableTargets(best ? 0 : kWider);
    hwy::GetChosenTarget().DeInit();
  }
  ~OtherIsa() {
    hwy::DisableTargets(0);
    hwy::GetChosenTarget().DeInit();
    cpu::choose_isa();
  }
  OtherIsa(const OtherIsa&) = delete;
  OtherIsa& operator=(const OtherIsa&) = delete;
};

// [state][numbers of all waves]
using States = std::vector<std::vector<float>>;

States states_of(const ModelFile& model, const std::vector<int>& states,
                 std::span<const std::span<const float>> waves, Math math) {
  Extractor extractor(model, states, {.once = true, .math = math});
  States out(states.size());
  for (const std::span<const float>& wave : waves) {
    extractor.run({&wave, 1});
    for (size_t i = 0; i < states.size(); ++i) {
      const Tensor state = extractor.state(i, 0);
      out[i].insert(out[i].end(), state.f32(), state.f32() + state.count());
    }
  }
  return out;
}

double relative(const std::vector<float>& ours, const std::vector<float>& theirs) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < ours.size(); ++i) {
    difference += std::pow(static_cast<double>(ours[i]) - theirs[i], 2);
    norm += std::pow(static_cast<double>(theirs[i]), 2);
  }
  return std::sqrt(difference / norm);  // NaN if either has one
}

}  // namespace

std::vector<std::vector<double>> state_errors(const ModelFile& model,
                                              const std::vector<int>& states,
                                              std::span<const std::span<const float>> waves,
                                              std::span<const Math> maths) {
  const States exact = states_of(model, states, waves, Math::exact);
  std::vector<std::vector<double>> errors;
  for (const Math math : maths) {
    States theirs;
    if (math == Math::exact) {
      const OtherIsa other;
      theirs = states_of(model, states, waves, math);
    } else {
      theirs = states_of(model, states, waves, math);
    }
    std::vector<double>& of_states = errors.emplace_back();
    for (size_t i = 0; i < states.size(); ++i)
      of_states.push_back(math == Math::exact ? relative(exact[i], theirs[i])
                                              : relative(theirs[i], exact[i]));
  }
  return errors;
}

std::string state_errors_json(const std::string& model, const std::vector<int>& states,
                              std::span<const Math> maths,
                              const std::vector<std::vector<double>>& errors) {
  using Json = nlohmann::json;
  Json json{{"model", model}, {"states", states}, {"errors", Json::object()}};
  for (size_t m = 0; m < maths.size(); ++m) json["errors"][name(maths[m])] = errors[m];
  return json.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n";
}

double allowed_state_error(Math math) { return math == Math::exact ? 5e-5 : 1.5e-2; }

Numerics check_model(const Config& config, Math math, uint64_t seed) {
  ModelFile model;
  model.config = config, model.path = "random weights";
  model.config.task = {};
  RandomWeights(seed).add(model.tensors, backbone_tensors(model.config));
  const std::vector<float> wave = noise(seed, 0, kSampleRate);
  const std::span<const float> view = wave;
  const std::vector<int> last{static_cast<int>(config.layers)};
  return {.error = state_errors(model, last, {&view, 1}, {&math, 1})[0][0],
          .tolerance = allowed_state_error(math),
          .against = math == Math::exact ? "last state, another instruction set"
                                         : "last state, f32 products"};
}

std::vector<OpNumerics> check_ops(const OpsOptions& options) {
  std::vector<OpNumerics> checks;
  for (const OpSpec* spec : chosen_ops(options)) {
    // an op without products of 16-bit numbers computes in f32 on the CPU
    const Where where = options.where.device == Device::cpu && spec->narrow.empty()
                            ? Where{Device::cpu, Math::exact}
                            : options.where;
    Numerics all{.tolerance = 1, .against = "float64, in units of the tolerance"};
    for (const Case& c : spec->cases) {
      if (c.bench) continue;
      all.error = std::max(all.error, forward_error(*spec, c, kSpecSeed, where));
      for (std::string& wrong : check_case(*spec, c, kSpecSeed, where))
        all.wrong.push_back(std::move(wrong));
    }
    checks.push_back({spec->name, std::move(all)});
  }
  return checks;
}

}  // namespace sft
