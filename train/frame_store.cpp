#include "train/frame_store.h"

#include <cerrno>
#include <cstring>

#include "engine/check.h"
#include "engine/transfer.h"

namespace sft {

FrameStore::FrameStore(const std::vector<int64_t>& bytes, const FrameBudget& budget)
    : places_(bytes.size()), folder_(budget.folder) {
  for (size_t row = 0; row < bytes.size(); ++row) {
    Place& place = places_[row];
    place.bytes = bytes[row];
    if (memory_.used() + bytes[row] <= budget.memory) {
      place.where = Where::memory;
      place.memory = static_cast<char*>(memory_.take(bytes[row]));
    } else if (disk_bytes_ + bytes[row] <= budget.disk) {
      place.where = Where::disk;
      place.offset = static_cast<uint64_t>(disk_bytes_);
      disk_bytes_ += bytes[row];
    }
  }
}

void FrameStore::put(Context& ctx, uint32_t row, Tensor frames) {
  Place& place = places_[row];
  CHECK(place.where != Where::nowhere && frames.bytes() <= place.bytes, "frame_store: row {}", row);
  if (ctx.dry) return;
  flush(ctx);
  if (place.where == Where::memory)
    read(ctx, frames, place.memory);
  else if (!spill(ctx, place, frames))
    return give_up_disk();
  place.filled = true;
}

bool FrameStore::spill(Context& ctx, const Place& place, Tensor frames) {
  if (!file_) file_.emplace(folder_);
  bytes_.resize(static_cast<size_t>(frames.bytes()));
  read(ctx, frames, bytes_.data());
  return file_->write_at(place.offset, bytes_);
}

void FrameStore::give_up_disk() {
  disk_failed_ = std::strerror(errno);
  for (Place& place : places_)
    if (place.where == Where::disk && !place.filled) place.where = Where::nowhere;
}

void FrameStore::get(Context& ctx, uint32_t row, Tensor to) {
  const Place& place = places_[row];
  CHECK(place.filled && to.bytes() <= place.bytes, "frame_store: row {}", row);
  if (place.where == Where::memory) return write(ctx, place.memory, to);
  bytes_.resize(static_cast<size_t>(to.bytes()));
  file_->read_at(place.offset, bytes_);
  write(ctx, bytes_.data(), to);
}

void FrameStore::will_need(uint32_t row) const {
  const Place& place = places_[row];
  if (place.filled && place.where == Where::disk)
    file_->will_need(place.offset, static_cast<uint64_t>(place.bytes));
}

}  // namespace sft
