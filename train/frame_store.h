// Frames of utterances that are computed once and wanted again in every epoch: in memory while it
// lasts, then on disk.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/arena.h"
#include "engine/context.h"
#include "engine/io/spill_file.h"

namespace sft {

// What may be used. The folder need not be there before the first row goes to disk.
struct FrameBudget {
  int64_t memory = 0, disk = 0;  // bytes
  std::string folder;

  FrameBudget part(double share) const {
    const auto of = [&](int64_t bytes) {
      return static_cast<int64_t>(share * static_cast<double>(bytes));
    };
    return {of(memory), of(disk), folder};
  }
};

class FrameStore {
 public:
  FrameStore() = default;
  // bytes[i]: of row i at most. In turn, rows get a place in memory while that lasts, then on disk.
  FrameStore(const std::vector<int64_t>& bytes, const FrameBudget& budget);

  bool has_place(uint32_t row) const { return places_[row].where != Where::nowhere; }
  bool filled(uint32_t row) const { return places_[row].filled; }
  // Not for a row that has no place. Where the file system refuses (the disk is full), the row and
  // all that are not on disk yet lose theirs.
  void put(Context& ctx, uint32_t row, Tensor frames);
  void get(Context& ctx, uint32_t row, Tensor to);  // of filled rows
  void will_need(uint32_t row) const;               // a hint

  // When all rows are there.
  int64_t memory_bytes() const { return memory_.used(); }
  int64_t disk_bytes() const { return disk_bytes_; }
  const std::string& disk_failed() const { return disk_failed_; }  // why; empty: it did not

 private:
  enum class Where : uint8_t { nowhere, memory, disk };
  struct Place {
    Where where = Where::nowhere;
    bool filled = false;
    int64_t bytes = 0;
    char* memory = nullptr;
    uint64_t offset = 0;  // on disk
  };

  bool spill(Context& ctx, const Place& place, Tensor frames);
  void give_up_disk();

  std::vector<Place> places_;  // by row
  Arena memory_;               // of the host; pages are taken as rows come by
  std::string folder_;
  std::optional<SpillFile> file_;
  std::vector<std::byte> bytes_;  // on the way between disk and device
  int64_t disk_bytes_ = 0;
  std::string disk_failed_;
};

}  // namespace sft
