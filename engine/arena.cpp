#include "engine/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <utility>

#include "engine/cuda/runtime.h"

namespace sft {

int64_t bucket_rows(int64_t rows) {
  if (rows <= 256) return (rows + 15) / 16 * 16;
  const int64_t step = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(rows - 1))) / 16;
  return (rows + step - 1) / step * step;
}

Arena::Arena(int64_t capacity, bool poison, cuda::Runtime* gpu)
    : capacity_(capacity), poison_(poison), gpu_(gpu) {
  if (gpu_) {
    base_ = static_cast<char*>(gpu_->allocate(capacity));
    return;
  }
  void* range = mmap(nullptr, capacity, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED)
    fail(Kind::resource, Hint{"is there a limit on virtual memory (ulimit -v)?"},
         "cannot reserve {} bytes of addresses", capacity);
  madvise(range, capacity, MADV_HUGEPAGE);
  base_ = static_cast<char*>(range);
}

Arena::~Arena() {
  if (gpu_)
    gpu_->release(base_);
  else
    munmap(base_, capacity_);
}

void* Arena::take(int64_t bytes) {
  const int64_t size = (bytes + 63) / 64 * 64;
  if (size > capacity_ - used_)
    fail(Kind::resource, "out of memory: {} bytes are in use, {} more wanted, {} allowed", used_,
         size, capacity_);
  void* memory = base_ + used_;
  used_ += size;
  peak_ = std::max(peak_, used_);
  if (poison_ && gpu_) gpu_->fill(memory, 0xFF, size);
  if (poison_ && !gpu_) std::memset(memory, 0xFF, size);
  return memory;
}

Tensor Arena::tensor(Shape shape, Dtype dtype, bool dry) {
  const Device device = gpu_ ? Device::cuda : Device::cpu;
  const int64_t bytes = bytes_of(dtype, shape.count());
  if (shape.rank() != 2) return Tensor(take(bytes), shape, dtype, device);
  const int64_t whole = bytes_of(dtype, bucket_rows(shape[0]) * shape[1]);
  Tensor matrix(take(whole), shape, dtype, device);
  if (!dry) zero(static_cast<char*>(matrix.data) + bytes, whole - bytes);
  return matrix;
}

void Arena::zero(void* memory, int64_t bytes) {
  if (!gpu_)
    std::memset(memory, 0, bytes);
  else if (bytes)
    gpu_->fill(memory, 0, bytes);
}

void Arena::rewind(int64_t mark) {
  CHECK(mark <= used_, "arena: rewind to {}, only {} in use", mark, used_);
  used_ = mark;
}

void* Arena::keep(int64_t mark, int64_t bytes) {
  rewind(mark);
  const bool poison = std::exchange(poison_, false);
  void* memory = take(bytes);
  poison_ = poison;
  return memory;
}

}  // namespace sft
