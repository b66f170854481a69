#include "engine/audio/source.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "engine/check.h"

namespace sft {
namespace {

constexpr size_t kLongestPath = 4096;

class File final : public ByteSource {
 public:
  File(std::string name, int64_t size, int fd) : ByteSource(std::move(name), size), fd_(fd) {}
  ~File() override { close(fd_); }
  size_t read(int64_t offset, void* to, size_t count) const noexcept override {
    size_t done = 0;
    while (done < count) {
      const ssize_t got = pread(fd_, static_cast<char*>(to) + done, count - done,
                                offset + static_cast<int64_t>(done));
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) break;
      done += static_cast<size_t>(got);
    }
    return done;
  }

 private:
  int fd_;
};

class Memory final : public ByteSource {
 public:
  Memory(std::string name, std::span<const std::byte> bytes)
      : ByteSource(std::move(name), static_cast<int64_t>(bytes.size())), bytes_(bytes) {}
  size_t read(int64_t offset, void* to, size_t count) const noexcept override {
    if (offset < 0 || offset >= size) return 0;
    const size_t n = std::min(count, static_cast<size_t>(size - offset));
    std::memcpy(to, bytes_.data() + offset, n);
    return n;
  }

 private:
  std::span<const std::byte> bytes_;
};

}  // namespace

std::unique_ptr<ByteSource> open_bytes(const std::string& path) {
  std::string name = printable(path, kLongestPath);
  // Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) fail(Kind::input, "{}: {} (expected an audio file)", name, std::strerror(errno));
  struct stat status {};
  if (fstat(fd, &status) != 0) status.st_mode = 0;
  auto file = std::make_unique<File>(name, status.st_size, fd);
  if (S_ISDIR(status.st_mode)) fail(Kind::input, "{}: is a folder (expected an audio file)", name);
  if (!S_ISREG(status.st_mode))
    fail(Kind::input, "{}: is a pipe or a device (expected an audio file)", name);
  if (file->size == 0) fail(Kind::input, "{}: the file is empty (expected an audio file)", name);
  return file;
}

std::unique_ptr<ByteSource> view_bytes(std::span<const std::byte> bytes, const std::string& name) {
  std::string shown = printable(name, kLongestPath);
  if (bytes.empty()) fail(Kind::input, "{}: no bytes (expected an audio file)", shown);
  return std::make_unique<Memory>(std::move(shown), bytes);
}

}  // namespace sft
