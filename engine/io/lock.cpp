#include "engine/io/lock.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstring>

#include "engine/check.h"

namespace sft {

namespace {

std::string host_name() {
  std::array<char, 256> name{};
  ::gethostname(name.data(), name.size() - 1);
  return name.data();
}

std::string holder(const io::Descriptor& file) {
  std::array<char, 512> content;
  const ssize_t n = file.read_at(content.data(), content.size(), 0);
  std::string text(content.data(), n > 0 ? static_cast<size_t>(n) : 0);
  return text.substr(0, text.find('\n'));
}

std::string host_of(const std::string& holder) {
  const size_t at = holder.find(" host ");
  return at == std::string::npos ? "" : holder.substr(at + 6);
}

// The file may have been removed by its last holder between our open and our lock.
bool still_at(const io::Descriptor& file, const std::string& path) {
  struct stat ours, there;
  return ::fstat(file.fd(), &ours) == 0 && ::stat(path.c_str(), &there) == 0 &&
         ours.st_ino == there.st_ino && ours.st_dev == there.st_dev;
}

io::Descriptor open_locked(const std::string& path) {
  for (;;) {
    io::Descriptor file(path, O_RDWR | O_CREAT);
    if (!file.valid())
      fail(Kind::resource, "{}: cannot open ({})", printable(path), std::strerror(errno));
    if (file.lock() != 0) {
      if (errno == EWOULDBLOCK)
        fail(Kind::resource, "{}: locked by {}", printable(path), printable(holder(file)));
      fail(Kind::resource, "{}: cannot lock ({})", printable(path), std::strerror(errno));
    }
    if (still_at(file, path)) return file;
  }
}

}  // namespace

LockFile::LockFile(const std::string& path) : file_(open_locked(path)) {
  const std::string before = holder(file_), host = host_of(before);
  if (!host.empty() && host != host_name())
    fail(Kind::resource, Hint{"if that process is gone, remove the file"}, "{}: locked by {}",
         printable(path), printable(before));
  const std::string text = fmt::format("pid {} host {}\n", getpid(), host_name());
  if (file_.truncate(0) != 0 || file_.write_at(text.data(), text.size(), 0) < 0)
    fail(Kind::resource, "{}: cannot write ({})", printable(path), std::strerror(errno));
}

LockFile::~LockFile() {
  if (file_.valid()) io::unlink(file_.path());
}

}  // namespace sft
