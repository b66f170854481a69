// Arena: bump allocation over one reserved range of addresses.
//
// A step takes memory in the same order every time, so every tensor of a step lies at the same
// address in the next step of the same shape. Pages are committed by the system on first touch;
// peak() is what was taken at most, in a dry step (Context::dry) without touching any of it.
#pragma once

#include <cstdint>

#include "engine/tensor.h"

namespace sft::cuda {
class Runtime;
}

namespace sft {

// Rows that a buffer of `rows` rows holds, so that arenas and kernels of a device see few shapes;
// rows past the tensor's own are zero.
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

  void* take(int64_t bytes);  // aligned to 64
  // Dense. A matrix ([T, C]) has room for bucket_rows(T) rows; unless dry, those past T are zeroed.
  Tensor tensor(Shape shape, Dtype dtype = Dtype::f32, bool dry = false);

  int64_t mark() const { return used_; }
  void rewind(int64_t mark);
  // Rewinds to the mark and takes `bytes` there, whose contents stay as they are.
  void* keep(int64_t mark, int64_t bytes);
  int64_t peak() const { return peak_; }
  void forget_peak() { peak_ = used_; }
  char* base() const { return base_; }

 private:
  void zero(void* memory, int64_t bytes);

  char* base_;
  int64_t capacity_, used_ = 0, peak_ = 0;
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
  int64_t mark_;
};

}  // namespace sft
