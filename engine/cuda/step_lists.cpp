#include "engine/cuda/step_lists.h"

#include <xxhash.h>

#include <bit>
#include <cstring>

namespace sft::cuda {

void StepLists::allocate(int64_t capacity) {
  region_ = DriverMemory::of_device(driver_, capacity);
  for (DriverMemory& mirror : mirrors_) mirror = DriverMemory::pinned(driver_, capacity);
  capacity_ = capacity;
}

void StepLists::begin_step() {
  ++step_;
  used_ = sent_ = refused_ = 0;
}

const void* StepLists::put(const void* from, int64_t bytes) {
  const uint64_t hash = XXH3_64bits(from, bytes);
  char* mirror = mirrors_[step_ % 2].bytes();
  // Four places for a list: where all are taken by others, it lies there twice, and no harm is
  // done.
  Entry* free = nullptr;
  for (size_t i = 0; i < 4; ++i) {
    Entry& entry = entries_[(hash + i) % kEntries];
    if (entry.step != step_)
      free = &entry;
    else if (entry.hash == hash && entry.bytes == bytes &&
             std::memcmp(mirror + entry.begin, from, bytes) == 0)
      return region_.bytes() + entry.begin;
  }
  const int64_t begin = used_, size = (bytes + 63) / 64 * 64;
  if (size > capacity_ - begin) {
    refused_ += size;
    return nullptr;
  }
  used_ += size;
  std::memcpy(mirror + begin, from, bytes);
  if (free) *free = {hash, begin, bytes, step_};
  return region_.bytes() + begin;
}

void StepLists::send() {
  if (used_ == sent_) return;
  driver_.run(Upload{region_.bytes() + sent_, mirrors_[step_ % 2].bytes() + sent_, used_ - sent_});
  sent_ = used_;
}

void StepLists::end_step() {
  if (refused_ == 0) return;
  driver_.wait();
  const auto wanted = static_cast<uint64_t>(used_ + refused_);
  allocate(static_cast<int64_t>(std::bit_ceil(wanted + wanted / 2)));
}

}  // namespace sft::cuda
