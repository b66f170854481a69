#include "engine/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <bit>
#include <cstring>

#include "engine/cuda/runtime.h"

namespace sft {
namespace {

int64_t aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

}  // namespace

int64_t bucket_rows(int64_t rows) {
  if (rows <= 256) return (rows + 15) / 16 * 16;
  const int64_t step = static_cast<int64_t>(std::bit_floor(static_cast<uint64_t>(rows - 1))) / 16;
  return (rows + step - 1) / step * step;
}

Arena::Arena(int64_t capacity, bool poison, cuda::Runtime* gpu)
    : capacity_(aligned(capacity)), poison_(poison), gpu_(gpu) {
  if (gpu_) {
    base_ = static_cast<char*>(gpu_->allocate(capacity_));
    return;
  }
  void* range = mmap(nullptr, capacity_, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (range == MAP_FAILED)
    fail(Kind::resource, Hint{"is there a limit on virtual memory (ulimit -v)?"},
         "cannot reserve {} bytes of addresses", capacity);
  madvise(range, capacity_, MADV_HUGEPAGE);
  base_ = static_cast<char*>(range);
}

Arena::~Arena() {
  if (gpu_)
    gpu_->release(base_);
  else
    munmap(base_, capacity_);
}

void Arena::check_room(int64_t size) const {
  if (size <= capacity_ - used()) return;
  fail(Kind::resource, "out of memory: {} bytes are in use, {} more wanted, {} allowed", used(),
       size, capacity_);
}

void* Arena::take(int64_t bytes) {
  const int64_t size = aligned(bytes);
  check_room(size);
  used_.top += size;
  peak_.top = std::max(peak_.top, used_.top);
  void* memory = base_ + capacity_ - used_.top;
  poison(memory, size);
  return memory;
}

Tensor Arena::loose(Shape shape, Dtype dtype) {
  return Tensor(take(bytes_of(dtype, shape.count())), shape, dtype, device());
}

Tensor Arena::tensor(Shape shape, Dtype dtype, bool dry) {
  if (shape.rank() != 2) return loose(shape, dtype);
  const Tensor matrix = keep(used_, Tensor(nullptr, shape, dtype, device()));
  const int64_t whole = bytes_of(dtype, matrix.room * shape[1]);
  poison(matrix.data, whole);
  // On a device at least one row, so that steps whose matrices are just full have no fill less.
  const int64_t first = gpu_ ? std::min(shape[0], matrix.room - 1) : shape[0];
  const int64_t begin = bytes_of(dtype, first * shape[1]);
  if (!dry) zero(static_cast<char*>(matrix.data) + begin, whole - begin);
  return matrix;
}

Tensor Arena::keep(Mark mark, const Tensor& matrix) {
  rewind(mark);
  Tensor kept(at(mark), matrix.shape, matrix.dtype, matrix.device);
  kept.room = bucket_rows(std::max<int64_t>(matrix.shape[0], 1));
  const int64_t size = aligned(bytes_of(matrix.dtype, kept.room * matrix.shape[1]));
  check_room(size);
  used_.bottom += size;
  peak_.bottom = std::max(peak_.bottom, used_.bottom);
  return kept;
}

void Arena::rewind(Mark mark) {
  CHECK(mark.bottom <= used_.bottom && mark.top <= used_.top,
        "arena: rewind to {} and {}, only {} and {} in use", mark.bottom, mark.top, used_.bottom,
        used_.top);
  used_ = mark;
}

void Arena::poison(void* memory, int64_t bytes) {
  if (!poison_) return;
  if (gpu_)
    gpu_->fill(memory, 0xFF, bytes);
  else
    std::memset(memory, 0xFF, bytes);
}

void Arena::zero(void* memory, int64_t bytes) {
  if (!gpu_)
    std::memset(memory, 0, bytes);
  else if (bytes)
    gpu_->fill(memory, 0, bytes);
}

}  // namespace sft
