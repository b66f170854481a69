// Arena: bump allocation over one reserved range of addresses, from both of its ends.
//
// A step takes memory in the same order every time, so every tensor of a step lies at the same
// address in the next step of the same shape. Matrices, which grow from the bottom, lie at the same
// addresses in every step that has as many rows but for what their room makes up for: a device's
// graph of products (engine/cuda/step_graphs.h) serves all of these. Everything else, of whatever
// length, grows from the top. Pages are committed by the system on first touch; peak() is what was
// taken at most, in a dry step (Context::dry) without touching any of it.
#pragma once

#include <cstdint>

#include "engine/tensor.h"

namespace sft::cuda {
class Runtime;
}

namespace sft {

// Rows that a matrix of `rows` rows has room for, so that arenas and products of a device see few
// shapes. Those past its own are zero at first. Products on a device compute them with the others:
// of gradients they stay zero, of activations they become some finite number (engine/cuda/gemm.h).
//   up to 256: multiples of 16; then steps of about 1/16: at most 6 % more, on average 3 %.
int64_t bucket_rows(int64_t rows);

class Arena {
 public:
  // Reserves addresses for `capacity` bytes; touches none of them. A larger need fails with
  // Kind::resource. poison: memory is filled with NaN when it is taken (tests).
  // gpu: allocates `capacity` bytes of its memory instead, and works in the order of its stream.
  explicit Arena(int64_t capacity = int64_t{1} << 40, bool poison = false,
                 cuda::Runtime* gpu = nullptr);
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  struct Mark {
    int64_t bottom = 0, top = 0;  // bytes in use at both ends
  };

  void* take(int64_t bytes);  // at the top, aligned to 64
  // Dense. A matrix ([T, C]) has room for bucket_rows(T) rows; unless dry, those past T are zeroed.
  Tensor tensor(Shape shape, Dtype dtype = Dtype::f32, bool dry = false);
  // The same at the top and without room: of any rank and length, for what no product reads.
  Tensor loose(Shape shape, Dtype dtype = Dtype::f32);

  Mark mark() const { return used_; }
  void rewind(Mark mark);
  void rewind() { rewind(Mark{}); }
  // Rewinds to the mark and takes there what a matrix like this one needs; nothing is written.
  Tensor keep(Mark mark, const Tensor& matrix);
  int64_t used() const { return used_.bottom + used_.top; }
  int64_t peak() const { return peak_.bottom + peak_.top; }
  void forget_peak() { peak_ = used_; }
  char* at(Mark mark) const { return base_ + mark.bottom; }

 private:
  Device device() const { return gpu_ ? Device::cuda : Device::cpu; }
  void check_room(int64_t size) const;
  void poison(void* memory, int64_t bytes);
  void zero(void* memory, int64_t bytes);

  char* base_;
  int64_t capacity_;
  Mark used_, peak_;
  bool poison_;
  cuda::Runtime* gpu_;
};

// Scratch of one function: everything taken from the arena meanwhile is given back.
class ScratchScope {
 public:
  explicit ScratchScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ScratchScope() { arena_.rewind(mark_); }
  ScratchScope(const ScratchScope&) = delete;
  ScratchScope& operator=(const ScratchScope&) = delete;

 private:
  Arena& arena_;
  Arena::Mark mark_;
};

}  // namespace sft
