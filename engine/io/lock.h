// One process per run folder.
#pragma once

#include <string>

#include "engine/io/system.h"

namespace sft {

// Holds `path` ("pid N host H") until destroyed. Another live holder: Kind::resource at once,
// "locked by pid N on host H". The kernel drops the lock of a dead process (flock), so its file is
// taken over; one left by another host is not, since nobody here can tell whether that one lives.
class LockFile {
 public:
  explicit LockFile(const std::string& path);
  LockFile(LockFile&&) noexcept = default;
  LockFile& operator=(LockFile&&) = delete;
  ~LockFile();

 private:
  io::Descriptor file_;
};

}  // namespace sft
