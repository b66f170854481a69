#include "engine/io/system.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <utility>

#include "engine/check.h"

namespace sft::io {

namespace {

Hook active_hook;

bool refused(Op op, const std::string& path) {
  if (!active_hook) return false;
  const int error = active_hook(op, path);
  if (error) errno = error;
  return error != 0;
}

// Asks the hook, then calls; both again after EINTR.
template <class F>
auto attempt(Op op, const std::string& path, F&& call) -> decltype(call()) {
  for (;;) {
    const auto result = refused(op, path) ? -1 : call();
    if (result != -1 || errno != EINTR) return result;
  }
}

}  // namespace

ScopedHook::ScopedHook(Hook hook) {
  CHECK(!active_hook, "a second I/O hook");
  active_hook = std::move(hook);
}

ScopedHook::~ScopedHook() { active_hook = nullptr; }

Descriptor::Descriptor(std::string path, int flags, mode_t mode) : path_(std::move(path)) {
  fd_ = attempt(Op::open, path_, [&] { return ::open(path_.c_str(), flags | O_CLOEXEC, mode); });
}

Descriptor::Descriptor(Descriptor&& other) noexcept
    : path_(std::move(other.path_)), fd_(std::exchange(other.fd_, -1)) {}

Descriptor& Descriptor::operator=(Descriptor&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(fd_, other.fd_);
  return *this;
}

Descriptor::~Descriptor() {
  if (valid()) ::close(fd_);
}

ssize_t Descriptor::read_at(void* to, size_t bytes, off_t offset) const {
  return attempt(Op::read, path_, [&] { return ::pread(fd_, to, bytes, offset); });
}

ssize_t Descriptor::write(const void* from, size_t bytes) const {
  return attempt(Op::write, path_, [&] { return ::write(fd_, from, bytes); });
}

ssize_t Descriptor::write_at(const void* from, size_t bytes, off_t offset) const {
  return attempt(Op::write, path_, [&] { return ::pwrite(fd_, from, bytes, offset); });
}

int Descriptor::sync() const {
  return attempt(Op::fsync, path_, [&] { return ::fsync(fd_); });
}

int Descriptor::truncate(off_t size) const {
  return attempt(Op::truncate, path_, [&] { return ::ftruncate(fd_, size); });
}

int Descriptor::lock() const {
  return attempt(Op::lock, path_, [&] { return ::flock(fd_, LOCK_EX | LOCK_NB); });
}

int Descriptor::close() {
  const int result = ::close(std::exchange(fd_, -1));
  const bool failed = result != 0 || refused(Op::close, path_);
  return failed && errno != EINTR ? -1 : 0;  // interrupted: Linux has closed it all the same
}

int rename(const std::string& from, const std::string& to) {
  return attempt(Op::rename, to, [&] { return ::rename(from.c_str(), to.c_str()); });
}

int rename_new(const std::string& from, const std::string& to) {
  return attempt(Op::rename, to, [&] {
    const int result = ::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_NOREPLACE);
    if (result == 0 || errno != EINVAL) return result;
    return ::rename(from.c_str(), to.c_str());  // a file system without the flag
  });
}

int exchange(const std::string& from, const std::string& to) {
  return attempt(Op::exchange, to, [&] {
    return ::renameat2(AT_FDCWD, from.c_str(), AT_FDCWD, to.c_str(), RENAME_EXCHANGE);
  });
}

int make_one_directory(const std::string& path) {
  return attempt(Op::mkdir, path, [&] { return ::mkdir(path.c_str(), 0777); });
}

int unlink(const std::string& path) {
  return attempt(Op::unlink, path, [&] { return ::unlink(path.c_str()); });
}

int remove_empty_directory(const std::string& path) {
  return attempt(Op::unlink, path, [&] { return ::rmdir(path.c_str()); });
}

}  // namespace sft::io
