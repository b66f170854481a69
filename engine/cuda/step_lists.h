// The lists of a step (segments, indices, labels: engine/cuda/lists.h) lie in one region of device
// memory, are gathered in pinned memory, and go up together before the commands that read them. A
// list that is there already is found again by its contents: nearly every op asks for the segments.
#pragma once

#include <array>
#include <vector>

#include "engine/cuda/driver.h"

namespace sft::cuda {

class StepLists {
 public:
  explicit StepLists(Driver& driver) : driver_(driver) { allocate(int64_t{1} << 20); }

  // Memory of step k is used again in step k + 2: that has to be over.
  void begin_step();
  // Where the list lies on the device for the rest of the step; null: there is no room, the next
  // step will have some.
  const void* put(const void* from, int64_t bytes);
  void send();      // what was put since the last call
  void end_step();  // after the commands

 private:
  struct Entry {
    uint64_t hash = 0;
    int64_t begin = 0, bytes = 0;
    int64_t step = -1;  // that it is of
  };
  static constexpr size_t kEntries = 1 << 12;

  void allocate(int64_t capacity);

  Driver& driver_;
  int64_t capacity_ = 0, used_ = 0, sent_ = 0, refused_ = 0;  // bytes
  int64_t step_ = 0;
  DriverMemory region_;
  std::array<DriverMemory, 2> mirrors_;  // of even and of odd steps
  std::vector<Entry> entries_ = std::vector<Entry>(kEntries);
};

}  // namespace sft::cuda
