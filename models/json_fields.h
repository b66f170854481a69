// A JSON object of configuration, read by key: null means absent, a value of another type is
// Kind::input that names file and key.
#pragma once

#include <cstdint>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace sft {

class JsonFields {
 public:
  // Kind::input if the text is no JSON object.
  JsonFields(std::string path, std::string_view text);
  static JsonFields of_file(const std::string& path);

  const std::string& path() const { return path_; }
  bool has(std::string_view key) const;
  // Left as it is where the key is absent.
  void get(std::string_view key, bool& to) const;
  void get(std::string_view key, int64_t& to) const;
  void get(std::string_view key, double& to) const;
  void get(std::string_view key, std::string& to) const;
  void get(std::string_view key, std::vector<int64_t>& to) const;
  // The object at `key`, which is there; its path says so.
  JsonFields object(std::string_view key) const;
  std::vector<std::pair<std::string, std::string>> members() const;  // key, value as JSON text

 private:
  JsonFields(std::string path, std::shared_ptr<const nlohmann::json> json);
  const nlohmann::json& at(std::string_view key, bool good(const nlohmann::json&),
                           std::string_view wanted) const;

  std::string path_;
  std::shared_ptr<const nlohmann::json> json_;
};

}  // namespace sft
