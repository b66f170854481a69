#include "engine/io/directory.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>

#include "engine/check.h"
#include "engine/io/system.h"

namespace sft {

namespace {

[[noreturn]] void fail_on(const std::string& path, const char* action, int error) {
  fail(Kind::resource, "{}: cannot {} ({})", printable(path), action, std::strerror(error));
}

bool is_directory(const std::string& path) {
  struct stat status;
  return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

bool something_at(const std::string& path) {
  struct stat status;
  return ::lstat(path.c_str(), &status) == 0;
}

// What rename says of a destination that is a folder with something in it, or no folder.
bool is_taken(int error) { return error == ENOTEMPTY || error == EEXIST || error == ENOTDIR; }

[[noreturn]] void fail_taken(const std::string& path) {
  fail(Kind::usage, Hint{"--force replaces it"}, "{}: exists already", printable(path));
}

}  // namespace

std::string parent_directory(const std::string& path) {
  const size_t end = path.find_last_not_of('/');
  const size_t slash = end == std::string::npos ? 0 : path.rfind('/', end);
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

void make_directory(const std::string& path) {
  if (is_directory(path)) return;
  if (const std::string parent = parent_directory(path); parent != path) make_directory(parent);
  if (io::make_one_directory(path) == 0) return;
  const int error = errno;
  if (!is_directory(path)) fail_on(path, "make the folder", error);
}

void rename_directory(const std::string& from, const std::string& to) {
  if (io::rename(from, to) != 0) fail_on(to, "rename a folder to this", errno);
  sync_directory(parent_directory(to));
}

void sync_directory(const std::string& path) {
  const io::Descriptor directory(path, O_RDONLY | O_DIRECTORY);
  if (!directory.valid()) fail_on(path, "open the folder", errno);
  if (directory.sync() != 0 && errno != EINVAL) fail_on(path, "sync the folder", errno);
}

OutputDirectory::OutputDirectory(std::string path, Existing existing)
    : path_(std::move(path)), existing_(existing) {
  while (path_.size() > 1 && path_.back() == '/') path_.pop_back();
  std::error_code code;
  const bool empty = is_directory(path_) && std::filesystem::is_empty(path_, code);
  if (existing_ == Existing::refuse && something_at(path_) && !empty) fail_taken(path_);
  make_directory(parent_directory(path_));
  put_back();
  temporary_ = fmt::format("{}.tmp-{}", path_, ::getpid());
  remove_tree(temporary_);
  make_directory(temporary_);
}

std::string OutputDirectory::aside() const { return path_ + ".tmp-old"; }

// After a crash in replace_in_two_steps.
void OutputDirectory::put_back() {
  if (!something_at(aside())) return;
  if (something_at(path_))
    remove_tree(aside());
  else
    rename_directory(aside(), path_);
}

OutputDirectory::~OutputDirectory() {
  if (temporary_.empty()) return;
  try {
    remove_tree(temporary_);
  } catch (const Error&) {  // already failing; what is left says what it is by its name
  }
}

void OutputDirectory::commit() {
  sync_directory(temporary_);
  if (io::rename(temporary_, path_) != 0) {
    if (!is_taken(errno)) fail_on(path_, "rename a folder to this", errno);
    if (existing_ == Existing::refuse) fail_taken(path_);  // made by another since
    return replace();
  }
  temporary_.clear();
  sync_directory(parent_directory(path_));
}

void OutputDirectory::replace() {
  if (io::exchange(temporary_, path_) != 0) {
    if (errno != EINVAL && errno != ENOSYS) fail_on(path_, "exchange a folder with this", errno);
    replace_in_two_steps();
  }
  sync_directory(parent_directory(path_));
  remove_tree(temporary_);  // the old one
  temporary_.clear();
}

void OutputDirectory::replace_in_two_steps() {
  if (io::rename(path_, aside()) != 0) fail_on(aside(), "rename a folder to this", errno);
  if (io::rename(temporary_, path_) != 0) {
    const int error = errno;
    if (io::rename(aside(), path_) != 0) fail_on(aside(), "rename this back", errno);
    fail_on(path_, "rename a folder to this", error);
  }
  temporary_ = aside();
}

void remove_tree(const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code code;
  if (fs::symlink_status(path, code).type() == fs::file_type::directory) {
    for (fs::directory_iterator entry(path, code), end; !code && entry != end;
         entry.increment(code))
      remove_tree(entry->path().string());
    if (code) fail_on(path, "list the folder", code.value());
    if (io::remove_empty_directory(path) != 0) fail_on(path, "remove the folder", errno);
  } else if (io::unlink(path) != 0 && errno != ENOENT) {
    fail_on(path, "remove the file", errno);
  }
}

}  // namespace sft
