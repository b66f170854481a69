// Metadata: the typed key-value pairs of a model file, in file order.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

namespace sft {

// Integers that fit are int64_t (uint64_t only holds what is above).
using MetadataValue =
    std::variant<bool, int64_t, uint64_t, double, std::string, std::vector<int64_t>,
                 std::vector<double>, std::vector<std::string>>;

class Metadata {
 public:
  using Entry = std::pair<std::string, MetadataValue>;

  // `origin` is what messages name: the path of the file.
  explicit Metadata(std::string origin = "metadata") : origin_(std::move(origin)) {}

  void set(std::string key, MetadataValue value);  // replaces in place
  bool has(std::string_view key) const { return find(key) != nullptr; }
  const MetadataValue* find(std::string_view key) const;  // null: absent
  const std::vector<Entry>& entries() const { return entries_; }

  // Kind::input if the key is absent or holds another type. An integer will do for a real.
  bool boolean(std::string_view key) const;
  int64_t integer(std::string_view key) const;
  uint64_t unsigned_integer(std::string_view key) const;
  double real(std::string_view key) const;
  const std::string& string(std::string_view key) const;
  std::vector<int64_t> integers(std::string_view key) const;
  std::vector<double> reals(std::string_view key) const;
  std::vector<std::string> strings(std::string_view key) const;

  bool operator==(const Metadata& other) const { return entries_ == other.entries_; }

 private:
  const MetadataValue& at(std::string_view key) const;
  template <class T>
  const T& get(std::string_view key, std::string_view wanted) const;
  [[noreturn]] void wrong_type(std::string_view key, std::string_view wanted) const;

  std::string origin_;
  std::vector<Entry> entries_;
  std::unordered_map<std::string, size_t> index_;
};

std::string text(const MetadataValue& value);  // for people: 768, "hubert", [10, 3, 3]

}  // namespace sft
