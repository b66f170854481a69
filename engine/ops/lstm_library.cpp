#include "engine/ops/lstm_library.h"

#include <cmath>
#include <cstdlib>
#include <cstring>

#include "engine/cuda/lstm_pass.h"
#include "engine/cuda/runtime.h"
#include "engine/formats/numbers.h"
#include "engine/step_memory.h"

namespace sft::cuda {
namespace {

constexpr std::array<int32_t, 5> kLengths{5, 1, 9, 0, 4};

// Relative to |value| + rms.
//   f32   sums over inputs and units, frame after frame, in another order, with sigmoid and tanh (a
//         few units in the last place, as of 64 terms more): three times what was seen. Products of
//         TF32 are several times as far away.
//   bf16  sixteen halves of its last place: what only one of the two rounds (weights, h, gradients
//         of gates, sums) goes on from frame to frame. Seen were four.
double tolerance(const LstmShape& shape) {
  if (shape.type == Dtype::bf16) return 16 * 0x1p-9;
  const auto terms = static_cast<double>(64 + shape.inputs + shape.units);
  return 4 * 0x1p-24 * std::sqrt(terms * *std::ranges::max_element(kLengths));
}

using Results = std::vector<std::vector<float>>;  // y, dx, gradients of each direction's weights

double distance(const std::vector<float>& a, const std::vector<float>& b) {
  double squares = 0, worst = 0;
  for (float x : b) squares += double{x} * x;
  const double rms = std::sqrt(squares / static_cast<double>(b.size())) + 1e-30;
  for (size_t i = 0; i < a.size(); ++i) {
    const double error = std::abs(double{a[i]} - b[i]) / (std::abs(b[i]) + rms);
    worst = error <= worst ? worst : std::isfinite(error) ? error : INFINITY;
  }
  return worst;
}

bool same_bits(const Results& a, const Results& b) {
  for (size_t i = 0; i < a.size(); ++i)
    if (std::memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(float)) != 0) return false;
  return true;
}

// A layer of made-up numbers, forward and back.
class Trial {
 public:
  Trial(Context& ctx, const LstmShape& shape) : ctx_(ctx), shape_(shape) {
    const int64_t T = list_.view().total(), H = shape.units, K = shape.inputs;
    const double spread = 1 / std::sqrt(static_cast<double>(H));
    x_ = made({T, K}, 1, shape.type), dy_ = made({T, shape.directions * H}, 1, shape.type);
    for (int64_t d = 0; d < shape.directions; ++d)
      weights_.push_back({made({4 * H, K}, spread), made({4 * H, H}, spread), made({4 * H}, spread),
                          made({4 * H}, spread)});
  }
  void run() {
    const Segments segments = list_.view();
    const LstmOut out = sft::lstm_forward(ctx_, x_, weights_, segments);
    std::vector<LstmGrads> grads;
    results_ = {out.y, ctx_.activation(x_.shape, x_.dtype)};
    for (const LstmWeights& w : weights_)
      grads.push_back({gradient(w.w_ih), gradient(w.w_hh), gradient(w.b_ih), gradient(w.b_hh)});
    sft::lstm_backward(ctx_, dy_, x_, weights_, segments, out, {results_[1]}, grads);
  }
  Results results() const {
    Results values;
    for (const Tensor& t : results_) {
      std::vector<std::byte> bytes(t.bytes());
      if (!ctx_.dry) ctx_.gpu->download(bytes.data(), t.data, t.bytes());
      to_f32(t.dtype, bytes.data(), values.emplace_back(t.count()).data(), t.count());
    }
    return values;
  }

 private:
  // Normal numbers that are the same in both types: differences are those of computing.
  Tensor made(Shape shape, double deviation, Dtype dtype = Dtype::f32) {
    const Tensor to = ctx_.activation(shape, dtype);
    std::vector<float> values(shape.count());
    for (float& v : values) v = static_cast<float>(draws_.normal() * deviation);
    std::vector<std::byte> bytes(bytes_of(shape_.type, to.count()));
    from_f32(values.data(), shape_.type, bytes.data(), to.count());
    to_f32(shape_.type, bytes.data(), values.data(), to.count());
    bytes.resize(to.bytes());
    from_f32(values.data(), dtype, bytes.data(), to.count());
    if (!ctx_.dry) ctx_.gpu->upload(to.data, bytes.data(), to.bytes());
    return to;
  }
  Grad gradient(const Tensor& weight) {
    return {results_.emplace_back(ctx_.activation(weight.shape))};
  }

  Context& ctx_;
  const LstmShape shape_;
  const SegmentList list_{kLengths};
  Draws draws_{1, 0, 0, fnv1a("lstm trial")};
  Tensor x_, dy_;
  std::vector<LstmWeights> weights_;
  std::vector<Tensor> results_;
};

// Kind::resource, saying what is wrong. Public entries compute it, told by `choice` who does.
void try_library(Runtime& gpu, const LstmShape& shape, LstmChoices::Choice& choice) {
  Prepared prepared(&gpu);
  StepMemory memory(&gpu);
  memory.step(prepared, shape.type == Dtype::bf16 ? Math::bf16 : Math::exact, [&](Context& ctx) {
    Trial trial(ctx, shape);
    choice.library = false;
    trial.run();
    const Results ours = trial.results();
    choice.library = true;
    trial.run();
    const Results theirs = trial.results();
    trial.run();
    const Results again = trial.results();
    if (ctx.dry) return;
    for (size_t i = 0; i < ours.size(); ++i)
      if (const double error = distance(theirs[i], ours[i]); !(error <= tolerance(shape)))
        fail(Kind::resource, "differs by {:.2g} from our own kernels, {:.2g} is allowed", error,
             tolerance(shape));
    if (!same_bits(theirs, again)) fail(Kind::resource, "has other bits the second time");
  });
}

LstmChoices::Choice choose(Runtime& gpu, const LstmShape& shape) {
  LstmChoices& choices = gpu.lstm_choices();
  const auto recorded = choices.recorded.find(shape);
  const std::string began = recorded == choices.recorded.end() ? "" : recorded->second;
  if (began == kOwnKernels) return {false, "as when the run began"};
  const auto answer = [&](const std::string& by, const std::string& why) {
    const bool changed = !began.empty() && began != by;
    const std::string before = "; the run began with " + printable(began) + ", and now rounds anew";
    return LstmChoices::Choice{by != kOwnKernels, changed ? why + before : why};
  };
  const char* wish = std::getenv("SFT_CUDNN");
  if (wish && std::string_view(wish) == "off") return answer(kOwnKernels, "SFT_CUDNN=off");
  if (gpu.in_step()) return answer(kOwnKernels, "the layer was first met inside a step");
  std::string name = "no library";
  try {
    name = gpu.lstm_library();
    try_library(gpu, shape, choices.made[shape]);
    return answer(name, "agrees with our own kernels");
  } catch (const Error& error) {
    return answer(kOwnKernels, name + ": " + error.message);
  }
}

}  // namespace

bool lstm_by_library(Context& ctx, Tensor x, std::span<const LstmWeights> directions,
                     const Segments& segments) {
  if (ctx.device != Device::cuda || segments.total() == 0) return false;
  const LstmShape shape{x.dtype, x.width(), directions[0].w_hh.width(), std::ssize(directions)};
  auto& made = ctx.gpu->lstm_choices().made;
  if (const auto found = made.find(shape); found != made.end()) return found->second.library;
  LstmChoices::Choice choice = choose(*ctx.gpu, shape);
  return (made[shape] = std::move(choice)).library;
}

std::vector<std::string> lstm_lines(Runtime& gpu) {
  std::vector<std::string> lines;
  for (const auto& [shape, choice] : gpu.lstm_choices().made)
    lines.push_back(fmt::format("lstm {} -> {} x {}, {}: {} ({})", shape.inputs, shape.directions,
                                shape.units, name(shape.type),
                                choice.library ? gpu.lstm_library() : kOwnKernels, choice.why));
  return lines;
}

}  // namespace sft::cuda
