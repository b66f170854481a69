// What stands between an encoder and a loss (reference: superb.md of SUPERB, Yang et al. 2021,
// arXiv:2105.01051; the ASR head of Speech-FT, arXiv:2502.12672). Parameters are named task.*.
//
//   ctc       linear     frames [T, C] -> out -> logits [T, V]
//             projector  frames -> proj -> out -> logits [T, V] (SUPERB phones)
//             blstm      frames -> proj -> layers of BiLSTM, dropout after each -> out -> logits
//             [T, V]
//   classify  mean       proj -> mean over the frames -> out -> logits [B, V]; no non-linearity
//
// layer_weights [L + 1], where a head reads a weighted sum of hidden states (probing).
#pragma once

#include "models/config.h"
#include "models/layers.h"

namespace sft {

struct LstmDirection {
  Param w_ih, w_hh, b_ih, b_hh;  // [4H, K], [4H, H], [4H], [4H]; gates i, f, g, o

  LstmDirection() = default;
  LstmDirection(int64_t in, int64_t width)
      : w_ih{{4 * width, in}}, w_hh{{4 * width, width}}, b_ih{{4 * width}}, b_hh{{4 * width}} {}

  template <class V>
  void visit(V&& v) {
    v("w_ih", w_ih), v("w_hh", w_hh), v("b_ih", b_ih), v("b_hh", b_hh);
  }
  LstmVars weights() const { return {w_ih, w_hh, b_ih, b_hh}; }
};

struct BiLstm {
  LstmDirection fwd, bwd;

  template <class V>
  void visit(V&& v) {
    v("fwd", fwd), v("bwd", bwd);
  }
};

struct TaskHead {
  Param layer_weights;
  Linear proj, out;
  std::vector<BiLstm> rnn;
  bool pools = false;  // logits per utterance
  std::vector<uint32_t> sites;

  TaskHead() = default;
  // states > 0: reads a weighted sum of that many hidden states.
  TaskHead(const Config::Task& task, int64_t width, int states = 0);

  template <class V>
  void visit(V&& v) {
    v("layer_weights", layer_weights), v("proj", proj), v("rnn", rnn), v("out", out);
  }
  // frames [T, C] -> logits; dropout after each recurrent layer.
  Var operator()(Tape& t, Var frames, Segments segments, float dropout_rate = 0) const;
  // The same of the weighted sum of hidden states, or of the one there is.
  Var operator()(Tape& t, std::span<const Var> states, Segments segments) const;
};

// Visits as task.*, beside an encoder.
struct NamedTaskHead {
  TaskHead head;
  template <class V>
  void visit(V&& v) {
    v("task", head);
  }
};

}  // namespace sft
