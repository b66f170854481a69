#include "engine/formats/metadata.h"

#include <fmt/ranges.h>

#include <limits>

#include "engine/check.h"

namespace sft {

void Metadata::set(std::string key, MetadataValue value) {
  if (const auto* large = std::get_if<uint64_t>(&value);
      large && *large <= uint64_t{std::numeric_limits<int64_t>::max()})
    value = static_cast<int64_t>(*large);
  const auto [where, added] = index_.try_emplace(key, entries_.size());
  if (added)
    entries_.emplace_back(std::move(key), std::move(value));
  else
    entries_[where->second].second = std::move(value);
}

const MetadataValue* Metadata::find(std::string_view key) const {
  const auto where = index_.find(std::string(key));
  return where == index_.end() ? nullptr : &entries_[where->second].second;
}

const MetadataValue& Metadata::at(std::string_view key) const {
  const MetadataValue* value = find(key);
  if (!value) fail(Kind::input, "{}: key {} is missing", printable(origin_), key);
  return *value;
}

void Metadata::wrong_type(std::string_view key, std::string_view wanted) const {
  fail(Kind::input, "{}: key {} is {} (expected {})", printable(origin_), key,
       printable(text(at(key))), wanted);
}

template <class T>
const T& Metadata::get(std::string_view key, std::string_view wanted) const {
  const T* value = std::get_if<T>(&at(key));
  if (!value) wrong_type(key, wanted);
  return *value;
}

bool Metadata::boolean(std::string_view key) const { return get<bool>(key, "true or false"); }

int64_t Metadata::integer(std::string_view key) const { return get<int64_t>(key, "an integer"); }

uint64_t Metadata::unsigned_integer(std::string_view key) const {
  if (const auto* large = std::get_if<uint64_t>(&at(key))) return *large;
  const int64_t value = get<int64_t>(key, "an integer, not negative");
  if (value < 0) wrong_type(key, "an integer, not negative");
  return static_cast<uint64_t>(value);
}

double Metadata::real(std::string_view key) const {
  if (const auto* whole = std::get_if<int64_t>(&at(key))) return static_cast<double>(*whole);
  return get<double>(key, "a number");
}

const std::string& Metadata::string(std::string_view key) const {
  return get<std::string>(key, "a string");
}

std::vector<int64_t> Metadata::integers(std::string_view key) const {
  return get<std::vector<int64_t>>(key, "a list of integers");
}

std::vector<double> Metadata::reals(std::string_view key) const {
  if (const auto* whole = std::get_if<std::vector<int64_t>>(&at(key)))
    return {whole->begin(), whole->end()};
  return get<std::vector<double>>(key, "a list of numbers");
}

std::vector<std::string> Metadata::strings(std::string_view key) const {
  return get<std::vector<std::string>>(key, "a list of strings");
}

std::string text(const MetadataValue& value) {
  return std::visit(
      [](const auto& v) {
        if constexpr (std::is_same_v<std::decay_t<decltype(v)>, std::string>)
          return fmt::format("\"{}\"", v);
        else
          return fmt::format("{}", v);
      },
      value);
}

}  // namespace sft
