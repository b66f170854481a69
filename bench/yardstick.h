// A library's way of computing what an op does, timed by sft-bench beside it: the bar for our own
// kernels, never used for anything else.
//
// It is shown only if its numbers agree with the op's: a library that computes something else says
// nothing about speed.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "tests/op_spec.h"

namespace sft {

class Yardstick {
 public:
  virtual ~Yardstick() = default;
  virtual std::string name() const = 0;  // "cuDNN 9.19"
  // The op's first output, forward; [rows, columns], of which rows at the end may be missing.
  virtual Array output() = 0;
  // Seconds of a call forward, on average over `calls` queued together.
  virtual double seconds(int64_t calls) = 0;
};

struct YardstickOf {
  const OpSpec& op;
  const Case& bench;
  std::span<const Array> inputs;
  Dtype compute;
  int64_t rotated_bytes;  // copies of the inputs that it goes round
};
// Null: has none for this op.
using MakeYardstick = std::function<std::unique_ptr<Yardstick>(const YardstickOf&)>;

// Where `theirs` differs from `ours`: the norm of the difference relative to that of theirs, over
// the rows that both have and ours has not left zero (what lies between utterances).
double disagreement(const Array& ours, const Array& theirs);
// What is put up with: products in f32 or TF32, or in bf16.
double allowed_disagreement(Dtype compute);

// cuDNN's convolutions and attention: cudnn.cpp, in programs with native CUDA kernels.
// Kind::resource if the library is missing or fails.
[[gnu::weak]] std::unique_ptr<Yardstick> cudnn_yardstick(const YardstickOf& what);

}  // namespace sft
