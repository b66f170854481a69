// Every system call that changes a file system passes here, so that a test can fail, or stop the
// program at, any of them. The rest of engine/io is built on these; nothing else includes this.
#pragma once

#include <sys/types.h>

#include <functional>
#include <string>

namespace sft::io {

enum class Op : int {
  open,
  read,
  write,
  fsync,
  truncate,
  close,
  rename,
  exchange,
  mkdir,
  unlink,
  lock
};

// Called before each operation: 0 lets it happen, an errno value fails it in its place. It may
// also end the process. `path` is the file, or the target of a rename.
using Hook = std::function<int(Op, const std::string& path)>;

// Installs a hook for the life of this object; one at a time, before any thread that does I/O.
class ScopedHook {
 public:
  explicit ScopedHook(Hook hook);
  ~ScopedHook();
  ScopedHook(const ScopedHook&) = delete;
};

// An owned file descriptor. The destructor closes and ignores errors: after writing, call close().
class Descriptor {
 public:
  Descriptor() = default;
  // open(2) with O_CLOEXEC; check valid(), errno says why not.
  Descriptor(std::string path, int flags, mode_t mode = 0666);
  Descriptor(Descriptor&& other) noexcept;
  Descriptor& operator=(Descriptor&& other) noexcept;
  ~Descriptor();

  bool valid() const { return fd_ >= 0; }
  int fd() const { return fd_; }
  const std::string& path() const { return path_; }

  // Bytes done (short counts are possible), or -1 with errno; EINTR is retried.
  ssize_t read_at(void* to, size_t bytes, off_t offset) const;
  ssize_t write(const void* from, size_t bytes) const;
  ssize_t write_at(const void* from, size_t bytes, off_t offset) const;
  // 0, or -1 with errno.
  int sync() const;
  int truncate(off_t size) const;
  int lock() const;  // flock, exclusive, not blocking
  int close();

 private:
  std::string path_;
  int fd_ = -1;
};

// 0, or -1 with errno.
int rename(const std::string& from, const std::string& to);
int rename_new(const std::string& from, const std::string& to);  // EEXIST if `to` exists
// Swaps two names at one instant; EINVAL or ENOSYS where the file system cannot.
int exchange(const std::string& from, const std::string& to);
int make_one_directory(const std::string& path);
int unlink(const std::string& path);
int remove_empty_directory(const std::string& path);

}  // namespace sft::io
