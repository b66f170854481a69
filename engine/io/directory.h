// Folders: made, renamed and synced so that they survive a crash. Errors: Kind::resource.
#pragma once

#include <string>

#include "engine/io/file.h"

namespace sft {

// With its parents; an existing folder is fine.
void make_directory(const std::string& path);
// Atomic; `to` must not exist, or be an empty folder. Syncs the folder that holds `to`.
void rename_directory(const std::string& from, const std::string& to);
// Makes the names inside `path` durable.
void sync_directory(const std::string& path);
// A file, or a folder and all in it; links are removed, not followed. Absent is fine.
void remove_tree(const std::string& path);

// A folder written under a temporary name beside its destination, DESTINATION.tmp-PID. commit()
// syncs it and gives it its name; without commit the destructor removes it.
//
// What it replaces changes places with it at one instant (RENAME_EXCHANGE) and is removed when that
// is durable: whenever the program ends, the old or the new lies complete under the final name, and
// what lies beside it as .tmp-PID may go. On a file system that cannot exchange, the old is first
// renamed to DESTINATION.tmp-old, and back if the new cannot take its place; after a crash between
// these two renames both are there, and the next OutputDirectory of that name puts the old one
// back.
class OutputDirectory {
 public:
  explicit OutputDirectory(std::string path, Existing existing = Existing::refuse);
  ~OutputDirectory();
  OutputDirectory(const OutputDirectory&) = delete;
  OutputDirectory& operator=(const OutputDirectory&) = delete;

  const std::string& folder() const { return temporary_; }  // where to write meanwhile
  std::string file(const std::string& name) const { return temporary_ + "/" + name; }
  const std::string& path() const { return path_; }
  void commit();

 private:
  std::string aside() const;
  void put_back();
  void replace();
  void replace_in_two_steps();

  std::string path_;
  Existing existing_;
  std::string temporary_;  // removed at the end; empty: nothing to remove
};

// "." for a bare name.
std::string parent_directory(const std::string& path);

}  // namespace sft
