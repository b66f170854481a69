// LSTM layers of a device by a library (cuDNN natively), where it agrees with our own kernels.
//
// Which of the two computes is found out once for each Runtime and shape, before the first layer of
// that shape runs: a small batch with awkward lengths goes forward and back through both, through
// the library a second time. The library computes if all its numbers are as
// near to ours as the type allows and the second time has the same bits. There is none, an error,
// other numbers, other bits, SFT_CUDNN=off in the environment, or first met inside a step: our own
// kernels do. A run that goes on keeps to what it recorded (gemm.txt).
#pragma once

#include <span>
#include <string>
#include <vector>

#include "engine/ops/lstm.h"

namespace sft::cuda {

// Whether the library computes this layer; on the CPU, and for no frames, false. Finds it out if
// that is not known: also in dry steps, which take the memory that the answer wants.
bool lstm_by_library(Context& ctx, Tensor x, std::span<const LstmWeights> directions,
                     const Segments& segments);

// Of every shape met so far who computes it and why, a line each.
std::vector<std::string> lstm_lines(Runtime& gpu);

// lstm_library.cu. As lstm_forward, once y is allocated, and lstm_backward.
[[gnu::weak]] void library_lstm_forward(Context& ctx, Tensor x,
                                        std::span<const LstmWeights> directions,
                                        const Segments& segments, LstmOut& out);
[[gnu::weak]] void library_lstm_backward(Context& ctx, Tensor dy, Tensor x,
                                         std::span<const LstmWeights> directions,
                                         const Segments& segments, const LstmOut& out, Grad dx,
                                         std::span<const LstmGrads> grads);

}  // namespace sft::cuda
