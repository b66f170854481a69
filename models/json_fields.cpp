#include "models/json_fields.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "engine/check.h"
#include "engine/io/file.h"

namespace sft {

using Json = nlohmann::json;

namespace {
std::string as_text(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}
}  // namespace

JsonFields::JsonFields(std::string path, std::shared_ptr<const Json> json)
    : path_(std::move(path)), json_(std::move(json)) {
  if (!json_->is_object()) fail(Kind::input, "{}: not a JSON object", printable(path_));
}

JsonFields::JsonFields(std::string path, std::string_view text)
    : JsonFields(std::move(path), std::make_shared<Json>(Json::parse(text, nullptr, false))) {}

JsonFields JsonFields::of_file(const std::string& path) { return {path, read_text(path)}; }

bool JsonFields::has(std::string_view key) const {
  const auto it = json_->find(key);
  return it != json_->end() && !it->is_null();
}

const Json& JsonFields::at(std::string_view key, bool good(const Json&),
                           std::string_view wanted) const {
  const Json& value = *json_->find(key);
  if (!good(value))
    fail(Kind::input, "{}: {} is {} (expected {})", printable(path_), key,
         printable(as_text(value), 60), wanted);
  return value;
}

void JsonFields::get(std::string_view key, bool& to) const {
  if (has(key))
    to = at(
        key, [](const Json& v) { return v.is_boolean(); }, "true or false");
}

void JsonFields::get(std::string_view key, int64_t& to) const {
  if (has(key))
    to = at(
             key, [](const Json& v) { return v.is_number_integer(); }, "an integer")
             .get<int64_t>();
}

void JsonFields::get(std::string_view key, double& to) const {
  if (has(key))
    to = at(
             key, [](const Json& v) { return v.is_number(); }, "a number")
             .get<double>();
}

void JsonFields::get(std::string_view key, std::string& to) const {
  if (has(key))
    to = at(
             key, [](const Json& v) { return v.is_string(); }, "a string")
             .get<std::string>();
}

void JsonFields::get(std::string_view key, std::vector<int64_t>& to) const {
  const auto integers = [](const Json& v) {
    return v.is_array() &&
           std::all_of(v.begin(), v.end(), [](const Json& x) { return x.is_number_integer(); });
  };
  if (has(key)) to = at(key, integers, "a list of integers").get<std::vector<int64_t>>();
}

JsonFields JsonFields::object(std::string_view key) const {
  const Json& value = at(
      key, [](const Json& v) { return v.is_object(); }, "an object");
  return {path_ + ": " + std::string(key), std::shared_ptr<const Json>(json_, &value)};
}

std::vector<std::pair<std::string, std::string>> JsonFields::members() const {
  std::vector<std::pair<std::string, std::string>> members;
  for (const auto& [key, value] : json_->items()) members.emplace_back(key, as_text(value));
  return members;
}

}  // namespace sft
