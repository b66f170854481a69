// Tape: an eager record of the functions called going forward, walked back to get gradients.
//
//   Tape tape(ctx);
//   Var loss = ...functions of autograd/functions.h...;
//   tape.loss(loss);        // d loss = 1; a step may have several losses
//   tape.backward();
//   tape.clear();           // with the arenas rewound, the next step lies at the same addresses
//
// A function calls its op and records a closure over views and scalars (placed in an arena, so it
// may hold nothing that needs destroying). Gradients are written once, then added to; none is ever
// zeroed. A Var without a slot is a constant: nothing is recorded for functions of constants only.
#pragma once

#include <array>
#include <cstdint>
#include <initializer_list>
#include <new>
#include <span>
#include <tuple>
#include <type_traits>
#include <vector>

#include "engine/context.h"
#include "engine/params.h"

namespace sft {

class Tape {
 public:
  // recording = false: functions only compute.
  explicit Tape(Context& ctx, bool recording = true);

  Context& ctx;

  // Records that `out` was computed from `inputs`; backward(Tape&, Tensor dy) writes the gradients
  // it gets from grad(input), asked for in statements, once per input, in the order it writes them.
  template <class F>
  Var record(const char* name, Tensor out, std::span<const Var> inputs, F backward) {
    return record<1>(name, std::array{out}, inputs,
                     [=](Tape& t, const std::array<Tensor, 1>& dy) { backward(t, dy[0]); })[0];
  }
  template <class F>
  Var record(const char* name, Tensor out, std::initializer_list<Var> inputs, F backward) {
    return record(name, out, std::span(inputs.begin(), inputs.size()), backward);
  }
  // Several outputs: backward(Tape&, std::array<Tensor, N> dy); an empty dy[i] is zero.
  template <size_t N, class F>
  std::array<Var, N> record(const char* name, std::array<Tensor, N> outs,
                            std::span<const Var> inputs, F backward);
  template <size_t N, class F>
  std::array<Var, N> record(const char* name, std::array<Tensor, N> outs,
                            std::initializer_list<Var> inputs, F backward) {
    return record(name, outs, std::span(inputs.begin(), inputs.size()), backward);
  }
  // A copy of a list that is as long as the function's inputs happen to be, for its closure.
  std::span<const Var> keep(std::span<const Var> vars);

  // Where to write the gradient of `v`; empty if nobody wants it.
  Grad grad(Var v);
  // The gradient that arrived at `v`; empty if none did.
  Tensor gradient(Var v) const { return v.slot && v.slot->written ? v.slot->to : Tensor(); }
  // A value from outside whose gradient is wanted.
  Var variable(Tensor value);

  void loss(Var v);             // dv = 1: losses ignore dy and use their weights
  void seed(Var v, Tensor dy);  // dv = dy
  void backward();
  void clear();
  bool recording() const { return recording_; }
  // Whether record() with these inputs will record: what only a backward needs need not be kept.
  bool wanted(std::span<const Var> inputs) const;
  size_t size() const { return records_.size(); }

  // One unit of recomputation and scratch reuse, such as a layer. `inputs` are all values from
  // outside that the body uses (parameters apart). Gradients of what it makes are scratch, gone
  // when its backward ends. With recompute (rebuilt on the way back), or where nothing is recorded,
  // its activations are dropped and the output is moved down in their place. body(Tape&, span<const
  // Var> inputs, state...) captures nothing and returns a dense value that it made.
  template <class F, class... State>
  Var block(const char* name, std::initializer_list<Var> inputs, bool recompute, F body,
            State... state);

 private:
  static constexpr size_t kMaxInputs = 4;
  struct Inputs {
    std::array<Var, kMaxInputs> vars;
    size_t count = 0;
    std::span<const Var> span() const { return {vars.data(), count}; }
  };
  struct Record {
    const char* name;
    GradSlot* outs;
    size_t out_count;
    void (*run)(Tape&, const Record&);  // one step back; null: the end of a block
    void* closure;
    int block;
    size_t first;  // of the end of a block: the block's first record
  };
  struct Scope {
    int block = kTopLevel;
    Inputs inputs;
  };
  template <class F, class... State>
  struct Body {
    F body;
    Inputs inputs;
    GradSlot* out;
    std::tuple<State...> state;

    Var run(Tape& t) const {
      return std::apply([&](const State&... s) { return body(t, inputs.span(), s...); }, state);
    }
  };

  GradSlot* new_slots(size_t n, int block);
  void place(Var v);  // its gradient, in acts
  void check_inputs(const char* name, std::span<const Var> inputs) const;
  Scope enter(const char* name, std::initializer_list<Var> inputs);
  void move(char* to, const void* from, int64_t bytes);  // downwards; may overlap
  Var move_down(Var out, Arena::Mark mark);
  template <class B>
  static void rebuild(Tape& t, const Record& record);
  void walk(size_t from, size_t to);  // records [to, from), last first
  void walk_block(int block, size_t from, size_t to);

  bool recording_;
  Arena host_;  // slots and closures
  std::vector<Record> records_;
  Scope scope_;     // going forward
  int blocks_ = 0;  // made so far
  int backward_block_ = kTopLevel;
};

template <size_t N, class F>
std::array<Var, N> Tape::record(const char* name, std::array<Tensor, N> outs,
                                std::span<const Var> inputs, F backward) {
  static_assert(std::is_trivially_destructible_v<F>,
                "closures live in an arena: views and scalars");
  check_inputs(name, inputs);
  std::array<Var, N> vars;
  for (size_t i = 0; i < N; ++i) vars[i].value = outs[i];
  if (!wanted(inputs)) return vars;
  GradSlot* slots = new_slots(N, scope_.block);
  for (size_t i = 0; i < N; ++i) vars[i].slot = slots + i;
  const auto run = [](Tape& t, const Record& r) {
    std::array<Tensor, N> dy;
    for (size_t i = 0; i < N; ++i)
      if (r.outs[i].written) dy[i] = r.outs[i].to;
    (*static_cast<F*>(r.closure))(t, dy);
  };
  void* closure = new (host_.take(sizeof(F))) F(backward);
  records_.push_back({name, slots, N, run, closure, scope_.block, 0});
  return vars;
}

template <class B>
void Tape::rebuild(Tape& t, const Record& record) {
  const B body = *static_cast<B*>(record.closure);
  const Arena::Mark acts = t.ctx.acts.mark(), host = t.host_.mark();
  const size_t begin = t.records_.size();
  const Scope outer = t.scope_;
  t.scope_ = {record.block, body.inputs};
  const Var again = body.run(t);
  t.scope_ = outer;
  if (again.slot) {
    again.slot->to = body.out->to;
    again.slot->written = true;
    t.walk_block(record.block, t.records_.size(), begin);
  }
  t.records_.resize(begin);
  t.host_.rewind(host);
  t.ctx.acts.rewind(acts);
}

template <class F, class... State>
Var Tape::block(const char* name, std::initializer_list<Var> inputs, bool recompute, F body,
                State... state) {
  static_assert(std::is_empty_v<F>, "a body captures nothing: its state is passed by value");
  using B = Body<F, State...>;
  for (const Var& v : inputs) place(v);
  const Arena::Mark mark = ctx.acts.mark();
  const size_t first = records_.size();
  const bool drop = recompute && wanted(std::span(inputs.begin(), inputs.size())),
             was_recording = recording_;
  const Scope outer = enter(name, inputs);
  B made{body, scope_.inputs, nullptr, {state...}};
  recording_ = recording_ && !drop;
  Var out = made.run(*this);
  recording_ = was_recording;
  const int block = scope_.block;
  scope_ = outer;
  if (drop) {
    made.out = out.slot = new_slots(1, outer.block);
    out = move_down(out, mark);
    void* closure = new (host_.take(sizeof(B))) B(made);
    records_.push_back({name, made.out, 1, rebuild<B>, closure, block, 0});
  } else if (records_.size() == first) {
    out = move_down(out, mark);
  } else {
    if (out.slot) out.slot->block = outer.block;
    place(out);
    records_.push_back({name, nullptr, 0, nullptr, nullptr, block, first});
  }
  return out;
}

}  // namespace sft
