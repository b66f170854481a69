#include "engine/io/spill_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "engine/check.h"

namespace sft {

SpillFile::SpillFile(const std::string& folder) : file_(folder, O_RDWR | O_TMPFILE, 0600) {
  if (!file_.valid() && (errno == EOPNOTSUPP || errno == EISDIR)) {  // not on this file system
    const std::string name = fmt::format("{}/.spill-{}", folder, getpid());
    file_ = io::Descriptor(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    if (file_.valid() && io::unlink(name) != 0) file_ = {};
  }
  if (!file_.valid())
    fail(Kind::resource, "{}: cannot write there ({})", printable(folder), std::strerror(errno));
}

bool SpillFile::write_at(uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = file_.write_at(bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n <= 0) return false;
    bytes = bytes.subspan(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
  return true;
}

void SpillFile::read_at(uint64_t offset, std::span<std::byte> to) const {
  while (!to.empty()) {
    const ssize_t n = file_.read_at(to.data(), to.size(), static_cast<off_t>(offset));
    if (n <= 0)
      fail(Kind::resource, "{}: cannot read back what was put there ({})", printable(file_.path()),
           n < 0 ? std::strerror(errno) : "it is gone");
    to = to.subspan(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
}

void SpillFile::will_need(uint64_t offset, uint64_t bytes) const {
  ::posix_fadvise(file_.fd(), static_cast<off_t>(offset), static_cast<off_t>(bytes),
                  POSIX_FADV_WILLNEED);
}

int64_t free_disk(const std::string& path) {
  std::filesystem::path at = std::filesystem::absolute(path);
  std::error_code none;
  while (at.has_relative_path() && !std::filesystem::exists(at, none)) at = at.parent_path();
  const std::filesystem::space_info space = std::filesystem::space(at, none);
  return none ? 0 : static_cast<int64_t>(space.available);
}

}  // namespace sft
