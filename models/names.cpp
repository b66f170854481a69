#include "models/names.h"

#include <vector>

#include "engine/check.h"

namespace sft {

namespace {

// What '#' and '*' of `pattern` stand for in `name`; false: it does not match.
bool match(std::string_view pattern, std::string_view name, std::string& number,
           std::string& suffix) {
  size_t i = 0;
  for (char c : pattern) {
    if (c == '#') {
      const size_t begin = i;
      while (i < name.size() && name[i] >= '0' && name[i] <= '9') ++i;
      if (i == begin || i - begin > 3) return false;
      number = name.substr(begin, i - begin);
    } else if (c == '*') {
      suffix = name.substr(i);
      return suffix == "weight" || suffix == "bias";
    } else if (i == name.size() || name[i++] != c) {
      return false;
    }
  }
  return i == name.size();
}

}  // namespace

std::string fill(std::string_view pattern, std::string_view number, std::string_view suffix) {
  std::string out;
  for (char c : pattern) {
    if (c == '#')
      out += number;
    else if (c == '*')
      out += suffix;
    else
      out += c;
  }
  return out;
}

std::string translate(std::span<const Spelling> table, std::string_view name, bool to_theirs) {
  std::string number, suffix;
  for (const Spelling& s : table) {
    if (to_theirs && !s.write) continue;
    if (match(to_theirs ? s.ours : s.theirs, name, number, suffix))
      return fill(to_theirs ? s.theirs : s.ours, number, suffix);
  }
  return "";
}

std::string backbone_prefix(std::string_view path, std::span<const std::string_view> names,
                            std::string_view marker) {
  std::vector<std::string> prefixes;
  for (std::string_view name : names)
    if (name.ends_with(marker)) prefixes.emplace_back(name.substr(0, name.size() - marker.size()));
  if (prefixes.size() != 1)
    fail(Kind::input, "{}: {} tensors end with {} (expected one: a single encoder)",
         printable(path), prefixes.size(), marker);
  return prefixes[0];
}

Shape our_shape(std::string_view name, const Shape& shape) {
  if (name.ends_with("rel_gate.scale"))
    return shape == Shape{1, shape.count(), 1, 1} ? Shape{shape.count()} : shape;
  const size_t drop = name.ends_with("weight_g") || name == "pretrain.distill.1.bias" ? 2
                      : name == "pretrain.vq.codebook"                                ? 1
                                                                                      : 0;
  const auto dims = shape.dims();
  if (dims.size() <= drop) return shape;
  for (size_t i = 0; i < drop; ++i)
    if (dims[i] != 1) return shape;
  return Shape(dims.subspan(drop));
}

Shape their_shape(std::string_view name, const Shape& shape) {
  if (name.ends_with("weight_g")) return {1, 1, shape[0]};
  if (name.ends_with("rel_gate.scale")) return {1, shape[0], 1, 1};
  if (name == "pretrain.vq.codebook") return {1, shape[0], shape[1]};
  if (name == "pretrain.distill.1.bias") return {1, 1, shape[0], shape[1]};
  return shape;
}

}  // namespace sft
