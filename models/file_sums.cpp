#include "models/file_sums.h"

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "engine/io/directory.h"
#include "engine/io/hash.h"

namespace sft {
namespace {

constexpr const char* kJsonFiles[] = {
    "config.json",           "preprocessor_config.json", "processor_config.json", "vocab.json",
    "tokenizer_config.json", "special_tokens_map.json",  "added_tokens.json"};

// Of an index that was read already.
std::set<std::string> shards_of(const std::string& index) {
  std::set<std::string> shards;
  const auto json = nlohmann::json::parse(read_text(index, 100'000'000));
  for (const auto& [tensor, file] : json.at("weight_map").items())
    shards.insert(parent_directory(index) + "/" + file.get<std::string>());
  return shards;
}

}  // namespace

std::vector<std::pair<std::string, std::string>> file_sums(const std::vector<std::string>& files) {
  std::vector<std::string> all;
  for (const std::string& file : files) {
    all.push_back(file);
    if (file.ends_with(".index.json"))
      for (const std::string& shard : shards_of(file)) all.push_back(shard);
    const std::string folder = parent_directory(file);
    if (std::filesystem::exists(folder + "/config.json") && !file.ends_with(".gguf"))
      for (const char* name : kJsonFiles)
        if (std::filesystem::exists(folder + "/" + name)) all.push_back(folder + "/" + name);
  }
  std::vector<std::pair<std::string, std::string>> sums;
  for (const std::string& file : all) sums.emplace_back(file, sha256_of_file(file));
  return sums;
}

}  // namespace sft
