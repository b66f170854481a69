// Whether what is timed computes the right numbers: a row whose check fails prints INVALID.
#pragma once

#include <functional>
#include <span>
#include <string>
#include <vector>

#include "bench/ops.h"
#include "engine/math.h"
#include "models/checkpoint.h"

namespace sft {

// States of `model` for these waves, relative to f32 products: one Frobenius norm of the
// difference over that of the state each, all frames of all waves together; [math][state]. Of
// exact, where the two would be the same, the reference is computed by another instruction set,
// several times as slow.
std::vector<std::vector<double>> state_errors(const ModelFile& model,
                                              const std::vector<int>& states,
                                              std::span<const std::span<const float>> waves,
                                              std::span<const Math> maths);
// They as one object: {"model", "states", "errors": {MATH: [of each state]}}
std::string state_errors_json(const std::string& model, const std::vector<int>& states,
                              std::span<const Math> maths,
                              const std::vector<std::vector<double>>& errors);
// How far the last state may be off (docs/math.md).
double allowed_state_error(Math math);

// The last state of an encoder with random weights, from a second of noise.
Numerics check_model(const Config& config, Math math, uint64_t seed);

// The spec of every op that the options choose, at its small cases: outputs and gradients against
// the oracle in float64, and everything else that tests ask of it. The error is in units of the
// tolerance: the worst output of any of them.
struct OpNumerics {
  std::string op;
  Numerics numerics;
};
std::vector<OpNumerics> check_ops(const OpsOptions& options);

}  // namespace sft
