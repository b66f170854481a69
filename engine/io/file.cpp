#include "engine/io/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "engine/check.h"
#include "engine/io/directory.h"

namespace sft {

namespace {

std::string why(int error) { return std::strerror(error); }

[[noreturn]] void fail_opening(const std::string& path, int error) {
  if (error == EMFILE || error == ENFILE || error == ENOMEM || error == EIO)
    fail(Kind::resource, "{}: cannot open ({})", printable(path), why(error));
  fail(Kind::input, "{}: cannot open ({})", printable(path), why(error));
}

// The file's temporary name: beside it, hidden, unique in this process and among processes.
std::string temporary_name(const std::string& path) {
  static std::atomic<int> counter;
  const size_t slash = path.rfind('/') + 1;  // 0 if there is none
  return fmt::format("{}.{}.{}-{}.tmp", path.substr(0, slash), path.substr(slash, 200), getpid(),
                     counter++);
}

}  // namespace

// ---- InputFile

InputFile::State::~State() {
  if (!mapping.empty()) ::munmap(const_cast<std::byte*>(mapping.data()), mapping.size());
}

InputFile::InputFile(std::string path) : state_(std::make_unique<State>()) {
  state_->file = io::Descriptor(path, O_RDONLY | O_NONBLOCK);  // a FIFO must not hang the open
  if (!state_->file.valid()) fail_opening(path, errno);
  struct stat status;
  if (::fstat(state_->file.fd(), &status) != 0) fail_opening(path, errno);
  if (S_ISDIR(status.st_mode)) fail(Kind::input, "{}: is a folder, not a file", printable(path));
  if (!S_ISREG(status.st_mode)) fail(Kind::input, "{}: is not a regular file", printable(path));
  state_->size = static_cast<uint64_t>(status.st_size);
}

void InputFile::read_at(uint64_t offset, std::span<std::byte> to) const {
  while (!to.empty()) {
    const ssize_t n = state_->file.read_at(to.data(), to.size(), static_cast<off_t>(offset));
    if (n < 0) fail(Kind::resource, "{}: cannot read ({})", printable(path()), why(errno));
    if (n == 0)
      fail(Kind::input, "{}: ends at byte {}, {} more were expected", printable(path()), offset,
           to.size());
    to = to.subspan(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
}

std::span<const std::byte> InputFile::map(Advice advice) const {
  std::call_once(state_->once, [&] {
    if (size() == 0) return;
    void* start = ::mmap(nullptr, size(), PROT_READ, MAP_PRIVATE, state_->file.fd(), 0);
    if (start == MAP_FAILED)
      fail(Kind::resource, "{}: cannot map {} bytes ({})", printable(path()), size(), why(errno));
    state_->mapping = {static_cast<const std::byte*>(start), size()};
    constexpr std::array kAdvice{MADV_SEQUENTIAL, MADV_RANDOM, MADV_WILLNEED};
    ::madvise(start, size(), kAdvice[static_cast<size_t>(advice)]);
  });
  return state_->mapping;
}

// ---- OutputFile

void check_destination(const std::string& path, Existing existing) {
  struct stat status;
  if (::stat(path.c_str(), &status) != 0) return;
  if (S_ISDIR(status.st_mode)) fail(Kind::usage, "{}: is a folder, not a file", printable(path));
  if (!S_ISREG(status.st_mode)) fail(Kind::usage, "{}: is not a regular file", printable(path));
  if (existing == Existing::refuse)
    fail(Kind::usage, Hint{"--force replaces it"}, "{}: exists already", printable(path));
}

OutputFile::OutputFile(std::string path, Existing existing)
    : path_(std::move(path)), existing_(existing) {
  check_destination(path_, existing_);
  std::string temporary = temporary_name(path_);
  file_ = io::Descriptor(temporary, O_WRONLY | O_CREAT | O_EXCL);
  if (!file_.valid()) fail_writing(errno);
  temporary_ = std::move(temporary);
}

OutputFile::OutputFile(OutputFile&& other) noexcept
    : path_(std::move(other.path_)),
      existing_(other.existing_),
      temporary_(std::exchange(other.temporary_, {})),
      file_(std::move(other.file_)),
      position_(other.position_),
      expected_(other.expected_) {}

OutputFile::~OutputFile() {
  if (!temporary_.empty()) io::unlink(temporary_);
}

void OutputFile::fail_writing(int error) const {
  std::string room;
  struct statvfs disk;
  if ((error == ENOSPC || error == EDQUOT || error == EFBIG) && expected_ > 0 &&
      ::statvfs(parent_directory(path_).c_str(), &disk) == 0)
    room = fmt::format("; {} bytes needed, {} free", expected_,
                       uint64_t{disk.f_bavail} * disk.f_frsize);
  fail(Kind::resource, "{}: cannot write ({}{})", printable(path_), why(error), room);
}

void OutputFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const ssize_t n = file_.write(bytes.data(), bytes.size());
    if (n < 0) fail_writing(errno);
    bytes = bytes.subspan(static_cast<size_t>(n));
    position_ += static_cast<uint64_t>(n);
  }
}

void OutputFile::write_zeros(uint64_t bytes) {
  static constexpr std::array<std::byte, 4096> kZeros{};
  for (; bytes > 0; bytes -= std::min<uint64_t>(bytes, kZeros.size()))
    write(std::span(kZeros).first(std::min<uint64_t>(bytes, kZeros.size())));
}

// Once a stretch of a large file is passed the kernel may begin to store it: commit() then waits
// for less. Only a hint.
void OutputFile::begin_storing(uint64_t from, uint64_t to) const {
  constexpr uint64_t kStretch = 16 << 20;
  const uint64_t passed = to / kStretch * kStretch;
  if (passed <= from) return;
  ::sync_file_range(file_.fd(), static_cast<off_t>(passed - kStretch), static_cast<off_t>(kStretch),
                    SYNC_FILE_RANGE_WRITE);
}

void OutputFile::write_at(uint64_t offset, std::span<const std::byte> bytes) {
  begin_storing(offset, offset + bytes.size());
  while (!bytes.empty()) {
    const ssize_t n = file_.write_at(bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0) fail_writing(errno);
    bytes = bytes.subspan(static_cast<size_t>(n));
    offset += static_cast<uint64_t>(n);
  }
}

void OutputFile::commit() {
  CHECK(!temporary_.empty(), "{}: committed twice", path_);
  if (file_.sync() != 0 || file_.close() != 0) fail_writing(errno);
  const bool renamed = (existing_ == Existing::replace ? io::rename(temporary_, path_)
                                                       : io::rename_new(temporary_, path_)) == 0;
  if (!renamed && errno == EEXIST) check_destination(path_, existing_);  // made by another since
  if (!renamed) fail_writing(errno);
  temporary_.clear();
  sync_directory(parent_directory(path_));
}

// ---- LogFile

namespace {

// Where the last complete line of the file ends.
uint64_t end_of_last_line(const InputFile& file) {
  std::array<std::byte, 4096> chunk;
  for (uint64_t end = file.size(); end > 0;) {
    const uint64_t start = end - std::min<uint64_t>(end, chunk.size());
    const auto bytes = std::span(chunk).first(end - start);
    file.read_at(start, bytes);
    for (uint64_t i = bytes.size(); i > 0; --i)
      if (bytes[i - 1] == std::byte{'\n'}) return start + i;
    end = start;
  }
  return 0;
}

}  // namespace

LogFile::LogFile(const std::string& path) : file_(path, O_WRONLY | O_CREAT | O_APPEND) {
  if (!file_.valid()) fail(Kind::resource, "{}: cannot write ({})", printable(path), why(errno));
  const InputFile before(path);
  const uint64_t end = end_of_last_line(before);
  if (end != before.size() && file_.truncate(static_cast<off_t>(end)) != 0)
    fail(Kind::resource, "{}: cannot cut an incomplete line ({})", printable(path), why(errno));
}

void LogFile::append(std::string_view line) {
  std::string bytes(line);
  bytes += '\n';
  for (std::string_view rest = bytes; !rest.empty();) {
    const ssize_t n = file_.write(rest.data(), rest.size());
    if (n < 0) fail(Kind::resource, "{}: cannot write ({})", printable(file_.path()), why(errno));
    rest.remove_prefix(static_cast<size_t>(n));
  }
}

void LogFile::sync() {
  if (file_.sync() != 0)
    fail(Kind::resource, "{}: cannot sync ({})", printable(file_.path()), why(errno));
}

// ---- small files

std::string read_text(const std::string& path, uint64_t limit) {
  const InputFile file(path);
  if (file.size() > limit)
    fail(Kind::input, "{}: {} bytes (at most {})", printable(path), file.size(), limit);
  std::string text(file.size(), '\0');
  file.read_at(0, std::as_writable_bytes(std::span(text.data(), text.size())));
  return text;
}

void write_text(const std::string& path, std::string_view text, Existing existing) {
  OutputFile file(path, existing);
  file.write(text);
  file.commit();
}

}  // namespace sft
