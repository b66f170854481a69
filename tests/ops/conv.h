// What the specs of the convolutions of the front end share: slots of waves and naive sums.
#pragma once

#include <cmath>
#include <functional>

#include "tests/op_spec.h"

namespace sft {

// Slots of a case: frames are the samples (or rows) of each utterance, in slots of whole hops.
// Good as long as the program lives: closures of a tape hold views.
const SlotList& slots_of(std::span<const int32_t> samples, int32_t hop);

inline double exact_gelu(double x) { return x * std::erfc(-x / std::sqrt(2.0)) / 2; }

// rows [T, C] := (x - mean) / sqrt(variance + eps) * weight + bias, over channels.
void norm_rows(Array& x, const Array& weight, const Array& bias, double eps);

// [T, C] for the slots `in`: bias[o] + sum_ij weight[o, i, j] x[stride t + j, i] in valid rows,
// zero elsewhere. bias may be empty. x [S] counts as [S, 1].
Array naive_conv(const Array& x, const Array& weight, const Array* bias, int32_t stride,
                 const SlotList& in);

// The output of an op and its gradients for this dy on a device against those on the CPU: the
// largest |difference| / (|value| + rms of all values), forward, then per input.
std::vector<double> distances_from_cpu(Math math, std::span<const Array> inputs, const Array& dy,
                                       const std::function<Var(Tape&, std::span<const Var>)>& op);

}  // namespace sft
