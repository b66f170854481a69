// LSTM over packed utterances, in one direction or two (Hochreiter & Schmidhuber 1997):
//
//   i, f, g, o = x_t w_ih^T + b_ih + h_(t-1) w_hh^T + b_hh   (4H wide), then sigmoid, g: tanh
//   c_t = f c_(t-1) + i g,   h_t = o tanh(c_t);   h and c are zero before the first frame
//
// The backward direction starts at the last frame of each utterance. Products with the input are
// GEMMs over all frames; the recurrence is a scan over time steps, each over all utterances that
// are still running (sorted by length, so they are the first ones). On a device a library computes
// the layer where it agrees with our own kernels (lstm_library.h).
#pragma once

#include <array>
#include <span>

#include "engine/context.h"
#include "engine/segments.h"

namespace sft {

struct LstmWeights {
  Tensor w_ih;        // [4H, K]
  Tensor w_hh;        // [4H, H]
  Tensor b_ih, b_hh;  // [4H]
};
struct LstmGrads {
  Grad w_ih, w_hh, b_ih, b_hh;
};

struct LstmOut {
  Tensor y;                     // [T, H], or [T, 2H]: forward beside backward
  std::array<Tensor, 2> gates;  // [T, 4H] f32 of each direction, after their activations; saved
  std::array<Tensor, 2> cells;  // [T, H] f32 of each direction; saved
  Tensor saved;                 // in place of both, if a library computes: what it saves, opaque
};

// x [T, K]; weights f32; directions: one (forward) or two (forward, backward), of the same shapes.
// Pieces of the scan are independent (a direction, some of the utterances): one for each thread.
// Reached: 156 GF/s of processor time forward and 142 backward on one core of an Emerald Rapids
// (FMA peak about 170), 16 utterances of 300 frames, K 512, H 256, two directions.
LstmOut lstm_forward(Context& ctx, Tensor x, std::span<const LstmWeights> directions,
                     const Segments& segments);

// dy like y -> dx [T, K] and the weights' gradients; both biases have the same. Products with
// frames of an utterance's neighbour never arise: h_(t-1) is zero at its border.
void lstm_backward(Context& ctx, Tensor dy, Tensor x, std::span<const LstmWeights> directions,
                   const Segments& segments, const LstmOut& out, Grad dx,
                   std::span<const LstmGrads> grads);

namespace cuda {  // lstm.cu
[[gnu::weak]] void lstm_forward(Context& ctx, Tensor x, std::span<const LstmWeights> directions,
                                const Segments& segments, const LstmOut& out);
[[gnu::weak]] void lstm_backward(Context& ctx, Tensor dy, Tensor x,
                                 std::span<const LstmWeights> directions, const Segments& segments,
                                 const LstmOut& out, Grad dx, std::span<const LstmGrads> grads);
}  // namespace cuda

}  // namespace sft
