#include "train/corpus.h"

#include <cstdlib>
#include <filesystem>
#include <map>

#include "build_info.h"
#include "engine/check.h"
#include "engine/io/file.h"
#include "train/stm.h"

namespace sft {

namespace fs = std::filesystem;

namespace {

bool is_file(const std::string& path) {
  std::error_code error;
  return fs::is_regular_file(path, error);
}

bool is_folder(const std::string& path) {
  std::error_code error;
  return fs::is_directory(path, error);
}

std::vector<std::string> folders_to_search(const std::string& data) {
  if (!data.empty()) return {data};
  std::vector<std::string> folders;
  if (const char* folder = std::getenv("SFT_DATA"); folder && *folder) folders.push_back(folder);
  folders.push_back("data");
  folders.push_back(corpora_folder());
  return folders;
}

// Appends every place looked at to `looked`; empty if the corpus is in none of `folders`.
std::string search(std::string_view name, const std::vector<std::string>& folders,
                   std::vector<std::string>& looked) {
  for (const std::string& folder : folders)
    for (const std::string& file : {fmt::format("{}/{}.tsv", folder, name),
                                    fmt::format("{}/{}/{}.tsv", folder, name, name)}) {
      if (is_file(file)) return file;
      looked.push_back(printable(file));
    }
  return "";
}

[[noreturn]] void not_found(std::string_view name, const std::vector<std::string>& looked) {
  if (name == "ted")
    fail(Kind::input,
         Hint{"TED-LIUM release 3: https://www.openslr.org/51/ (50 GB); --data names the unpacked "
              "folder; or: sft-data import ted DIR -o data/ted.tsv"},
         "corpus ted is not there (expected one of {}; or, under the same folders, this tree\n{})",
         fmt::join(looked, ", "), ted_tree("TEDLIUM_release-3"));
  fail(Kind::input, Hint{"name a manifest or its folder with --data"},
       "corpus {} is not there (expected one of {})", printable(name), fmt::join(looked, ", "));
}

// TED-LIUM as distributed, in or under one of `folders`: imported once, into ted.tsv beside it.
// Empty: it is in none.
std::string import_ted_from(const std::vector<std::string>& folders) {
  for (const std::string& folder : folders)
    for (const char* name : {"", "/ted", "/TEDLIUM_release-3", "/TEDLIUM_release3",
                             "/TEDLIUM_release2", "/TEDLIUM_release1"}) {
      if (!is_ted(folder + name)) continue;
      const std::string manifest = folder + "/ted.tsv";
      write_text(manifest, manifest_text(import_ted(folder + name).manifest));
      return manifest;
    }
  return "";
}

void check_data(const std::string& data) {
  if (!data.empty() && !is_folder(data))
    fail(Kind::input, "{}: no such file or folder (expected a manifest, or a folder with one)",
         printable(data));
}

}  // namespace

std::string corpora_folder() {
  const char* folder = std::getenv("SFT_CORPORA");
  if (folder && *folder) return folder;
  return is_folder(SFT_CORPORA_DIR) ? SFT_CORPORA_DIR : SFT_INSTALLED_CORPORA_DIR;
}

std::string find_corpus(std::string_view name, const std::string& data) {
  if (is_file(data)) return data;
  check_data(data);
  if (data.empty() && (name.ends_with(".tsv") || is_file(std::string(name))))
    return std::string(name);
  std::vector<std::string> looked;
  const std::vector<std::string> folders = folders_to_search(data);
  std::string found = search(name, folders, looked);
  if (found.empty() && name == "ted") found = import_ted_from(folders);
  if (found.empty()) not_found(name, looked);
  return found;
}

std::string find_task_corpus(std::string_view task, const std::string& data) {
  static const std::map<std::string, std::string, std::less<>> serves = {
      {"asr", "digits"}, {"er", "emotion"}, {"ks", "words"}, {"pr", "digits"}, {"sid", "digits"}};
  if (is_file(data)) return data;
  check_data(data);
  std::vector<std::string> looked;
  const std::vector<std::string> folders = folders_to_search(data);
  std::string found = search(task, folders, looked);
  const auto corpus = serves.find(task);
  if (found.empty() && corpus != serves.end()) found = search(corpus->second, folders, looked);
  if (found.empty()) not_found(task, looked);
  return found;
}

}  // namespace sft
