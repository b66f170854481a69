// An LSTM layer as a device's library computes it (engine/ops/lstm.h says what that is): one call
// for both directions, over utterances padded to one length. Who computes which layers is chosen in
// engine/ops/lstm_library.h.
#pragma once

#include <algorithm>
#include <array>
#include <compare>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/tensor.h"

namespace sft::cuda {

struct LstmShape {
  Dtype type = Dtype::f32;  // of x, y and weights, and of their gradients
  int64_t inputs = 0, units = 0, directions = 0;
  auto operator<=>(const LstmShape&) const = default;
};

// What the library needs for utterances of these lengths. An utterance without frames is padded
// like all others, and computed as one frame of zeros.
struct LstmPlan {
  struct Place {
    int64_t matrix = 0, bias = 0;  // elements from the beginning of the weights
  };

  LstmShape shape;
  std::vector<int32_t> starts;  // as in Segments
  int64_t weight_bytes = 0;     // of the weights as the library wants them, and of their gradients
  int64_t work_bytes = 0;       // for the length of a call
  int64_t saved_bytes = 0;      // from the way forward to the way back
  // Of each direction: what the input is multiplied with (i, f, g, o), and what h is.
  std::array<std::array<Place, 8>, 2> places;

  LstmPlan(const LstmShape& shape, std::vector<int32_t> starts)
      : shape(shape), starts(std::move(starts)) {}
  virtual ~LstmPlan() = default;
  int64_t batch() const { return static_cast<int64_t>(starts.size()) - 1; }
  int32_t length(int64_t b) const { return std::max(1, starts[b + 1] - starts[b]); }
  int32_t longest() const {
    int32_t most = 1;
    for (int64_t b = 0; b < batch(); ++b) most = std::max(most, length(b));
    return most;
  }
};

// Forward, or back. Matrices are [longest, batch, width]; what lies behind an utterance's end is
// read by nobody, and may be anything afterwards.
struct LstmPass {
  std::shared_ptr<const LstmPlan> plan;
  const void* weights = nullptr;
  const void* x = nullptr;
  void* y = nullptr;  // read, going back
  void* work = nullptr;
  void* saved = nullptr;
  const void* dy = nullptr;  // null: forward
  void* dx = nullptr;
  void* dweights = nullptr;  // added to; null: nobody wants it
  bool operator==(const LstmPass&) const = default;
};

constexpr const char* kOwnKernels = "our own kernels";

struct LstmChoices {
  struct Choice {
    bool library = false;
    std::string why;
  };
  std::map<LstmShape, Choice> made;
  std::map<LstmShape, std::string> recorded;  // who computed them in the run that goes on
};

}  // namespace sft::cuda
