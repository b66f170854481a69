#include "train/corpus.h"

#include <cstdlib>
#include <filesystem>
#include <map>

#include "build_info.h"
#include "engine/check.h"

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
  fail(Kind::input,
       Hint{name == "ted" ? "make it with: sft-data import ted DIR -o data/ted/ted.tsv"
                          : "name a manifest or its folder with --data"},
       "corpus {} is not there (expected one of {})", printable(name), fmt::join(looked, ", "));
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
  const std::string found = search(name, folders_to_search(data), looked);
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
