#include "autograd/tape.h"

#include <cstring>
#include <memory>
#include <utility>

#include "engine/cuda/runtime.h"

namespace sft {

Tape::Tape(Context& ctx, bool recording)
    : ctx(ctx), recording_(recording), host_(int64_t{1} << 32) {
  records_.reserve(4096);
}

GradSlot* Tape::new_slots(size_t n, int block) {
  auto* slots = static_cast<GradSlot*>(host_.take(static_cast<int64_t>(sizeof(GradSlot) * n)));
  for (size_t i = 0; i < n; ++i) new (slots + i) GradSlot{.block = block};
  return slots;
}

std::span<const Var> Tape::keep(std::span<const Var> vars) {
  auto* kept = static_cast<Var*>(host_.take(static_cast<int64_t>(vars.size_bytes())));
  std::uninitialized_copy(vars.begin(), vars.end(), kept);
  return {kept, vars.size()};
}

bool Tape::wanted(std::span<const Var> inputs) const {
  if (!recording_) return false;
  for (const Var& v : inputs)
    if (v.slot) return true;
  return false;
}

// A value of another block that is not listed as an input would get its gradient in memory that is
// gone by then.
void Tape::check_inputs(const char* name, std::span<const Var> inputs) const {
  for (const Var& v : inputs) {
    if (!v.slot || v.slot->block == kParameter || v.slot->block == scope_.block) continue;
    bool listed = false;
    for (const Var& input : scope_.inputs.span()) listed = listed || input.slot == v.slot;
    CHECK(listed, "{}: an input was made outside of this block and is not one of its inputs", name);
  }
}

Var Tape::variable(Tensor value) {
  return {value, recording_ ? new_slots(1, scope_.block) : nullptr};
}

void Tape::place(Var v) {
  if (v.slot && !v.slot->to) v.slot->to = ctx.like(ctx.acts, v.value);
}

Grad Tape::grad(Var v) {
  if (!v.slot) return {};
  if (!v.slot->to) {
    const bool inside = backward_block_ != kTopLevel && v.slot->block == backward_block_;
    v.slot->to = ctx.like(inside ? ctx.scratch : ctx.acts, v.value);
  }
  const bool add = v.slot->written;
  v.slot->written = true;
  return {v.slot->to, add};
}

void Tape::loss(Var v) {
  if (v.slot) v.slot->written = true;
}

void Tape::seed(Var v, Tensor dy) {
  CHECK(v.slot, "seed: the value depends on nothing that wants a gradient");
  v.slot->to = dy;
  v.slot->written = true;
}

void Tape::backward() { walk(records_.size(), 0); }

void Tape::clear() {
  records_.clear();
  host_.rewind();
  blocks_ = 0;
}

Tape::Scope Tape::enter(const char* name, std::initializer_list<Var> inputs) {
  CHECK(scope_.block == kTopLevel, "{}: blocks do not nest", name);
  CHECK(inputs.size() <= kMaxInputs, "{}: a block has at most {} inputs", name, kMaxInputs);
  const Scope outer = scope_;
  scope_ = {++blocks_, {}};
  for (const Var& v : inputs) scope_.inputs.vars[scope_.inputs.count++] = v;
  return outer;
}

void Tape::move(char* to, const void* from, int64_t bytes) {
  const bool overlap = static_cast<const char*>(from) < to + bytes;
  if (ctx.device == Device::cpu) {
    if (!ctx.dry) std::memmove(to, from, bytes);
    return;
  }
  ScratchScope scratch(ctx.scratch);
  void* between = overlap ? ctx.scratch.take(bytes) : nullptr;
  if (ctx.dry) return;
  if (overlap) ctx.gpu->copy(between, from, bytes);
  ctx.gpu->copy(to, overlap ? between : from, bytes);
}

Var Tape::move_down(Var out, Arena::Mark mark) {
  const Tensor from = out.value;
  CHECK(from.room && from.dense() && from.data >= ctx.acts.at(mark),
        "block: its output must be a matrix that it made");
  move(ctx.acts.at(mark), from.data, bytes_of(from.dtype, from.room * from.width()));
  out.value = ctx.acts.keep(mark, from);
  place(out);
  return out;
}

void Tape::walk_block(int block, size_t from, size_t to) {
  const int outer = backward_block_;
  ScratchScope scratch(ctx.scratch);
  backward_block_ = block;
  walk(from, to);
  backward_block_ = outer;
}

void Tape::walk(size_t from, size_t to) {
  while (from > to) {
    const Record record = records_[--from];
    if (!record.run) {
      walk_block(record.block, from, record.first);
      from = record.first;
      continue;
    }
    bool arrived = false;
    for (size_t i = 0; i < record.out_count; ++i) arrived = arrived || record.outs[i].written;
    if (arrived) record.run(*this, record);
  }
}

}  // namespace sft
