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

// A folder written under a temporary name beside its destination. commit() syncs and renames it;
// without commit the destructor removes it.
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
  std::string path_, temporary_;  // temporary empty: nothing to remove
};

// "." for a bare name.
std::string parent_directory(const std::string& path);

}  // namespace sft
