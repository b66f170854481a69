#include "models/task_head.h"

#include <fmt/format.h>

namespace sft {

TaskHead::TaskHead(const Config::Task& task, int64_t width, int states)
    : pools(task.head == "mean") {
  const auto units = static_cast<int64_t>(task.units.size());
  if (states) layer_weights.shape = {states};
  if (task.head == "linear") {
    out = Linear(width, units);
    return;
  }
  proj = Linear(width, task.width);
  int64_t in = task.width;
  for (int64_t l = 0; task.head == "blstm" && l < task.layers; ++l) {
    rnn.push_back({LstmDirection(in, task.width), LstmDirection(in, task.width)});
    sites.push_back(fnv1a(fmt::format("task.rnn.{}.dropout", l)));
    in = 2 * task.width;
  }
  out = Linear(in, units);
}

Var TaskHead::operator()(Tape& t, Var frames, Segments segments, float dropout_rate) const {
  Var x = frames;
  if (proj.weight.shape.rank()) x = proj(t, x);
  if (pools) x = segment_mean(t, x, segments);
  for (size_t l = 0; l < rnn.size(); ++l) {
    x = lstm(t, x, rnn[l].fwd.weights(), rnn[l].bwd.weights(), segments);
    x = dropout(t, x, Dropout{dropout_rate, sites[l]}, segments);
  }
  return out(t, x);
}

Var TaskHead::operator()(Tape& t, std::span<const Var> states, Segments segments) const {
  if (!layer_weights.shape.rank()) {
    CHECK(states.size() == 1, "head: {} states and no layer weights", states.size());
    return (*this)(t, states[0], segments);
  }
  return (*this)(t, weighted_sum(t, states, layer_weights, /*normalize=*/false), segments);
}

}  // namespace sft
