// Files, read and written. All file output of this project goes through engine/io.
//
// Errors name the path. Reading: Kind::input (missing, a directory, unreadable, too short), or
// Kind::resource when the device fails. Writing: Kind::usage for an existing destination (hint:
// --force), Kind::resource for everything the file system refuses (full, read-only, missing
// folder).
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <string_view>

#include "engine/io/system.h"

namespace sft {

enum class Advice { sequential, random, will_need };
enum class Existing { refuse, replace };

// A regular file open for reading. Any member may be called from several threads.
class InputFile {
 public:
  explicit InputFile(std::string path);

  const std::string& path() const { return state_->file.path(); }
  uint64_t size() const { return state_->size; }

  // Fills `to` from `offset`; a file that ends before is an error.
  void read_at(uint64_t offset, std::span<std::byte> to) const;
  // The whole file, mapped read-only on the first call, whose advice counts; lives as long as this
  // object.
  std::span<const std::byte> map(Advice advice = Advice::will_need) const;

 private:
  struct State {
    io::Descriptor file;
    uint64_t size = 0;
    std::once_flag once;
    std::span<const std::byte> mapping;
    ~State();
  };
  std::unique_ptr<State> state_;
};

// A file written under a temporary name beside its destination. commit() syncs it, renames it and
// syncs the folder; without commit the destructor removes the temporary file.
class OutputFile {
 public:
  explicit OutputFile(std::string path, Existing existing = Existing::refuse);
  OutputFile(OutputFile&& other) noexcept;
  OutputFile& operator=(OutputFile&&) = delete;
  ~OutputFile();

  const std::string& path() const { return path_; }
  uint64_t position() const { return position_; }  // where write() goes on

  // The size the file will have, where it is known: said in the message when the disk is full.
  void expect(uint64_t bytes) { expected_ = bytes; }
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text) { write(std::as_bytes(std::span(text.data(), text.size()))); }
  void write_zeros(uint64_t bytes);
  void write_at(uint64_t offset, std::span<const std::byte> bytes);  // leaves position()
  void commit();

 private:
  [[noreturn]] void fail_writing(int error) const;
  void begin_storing(uint64_t from, uint64_t to) const;

  std::string path_;
  Existing existing_;
  std::string temporary_;  // empty: nothing to remove
  io::Descriptor file_;
  uint64_t position_ = 0;
  uint64_t expected_ = 0;
};

// Lines added to the end of a file that other programs may follow (log.txt, metrics.jsonl). An
// incomplete last line, left by a crash, is cut off when the file is opened.
class LogFile {
 public:
  explicit LogFile(const std::string& path);
  void append(std::string_view line);  // and a newline, in one write
  void sync();

 private:
  io::Descriptor file_;
};

// A whole small file. More than `limit` bytes is an input error.
std::string read_text(const std::string& path, uint64_t limit = 1 << 20);
// Atomic, like OutputFile.
void write_text(const std::string& path, std::string_view text,
                Existing existing = Existing::refuse);

// Throws Kind::usage if something is at `path` and it may not be replaced (or is a folder).
void check_destination(const std::string& path, Existing existing);

}  // namespace sft
