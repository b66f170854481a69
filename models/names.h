// Names and shapes of tensors in the files of other programs, beside ours
// (docs/model-files.md). One table for each program and family of models.
#pragma once

#include <span>
#include <string>
#include <string_view>

#include "engine/tensor.h"

namespace sft {

// '#' is a number, '*' stands for weight and for bias.
struct Spelling {
  std::string_view ours, theirs;
  bool write = true;  // the spelling that we write
};

// The same name in the other spelling; empty: not in the table.
std::string translate(std::span<const Spelling> table, std::string_view name, bool to_theirs);

// A pattern with its number and its weight or bias put in.
std::string fill(std::string_view pattern, std::string_view number, std::string_view suffix);

// Dimensions of 1 that our names do not have: [1, 1, K] -> [K], [1, GV, d] -> [GV, d],
// [1, H, 1, 1] -> [H], [1, 1, n, C] -> [n, C].
Shape our_shape(std::string_view name, const Shape& shape);
Shape their_shape(std::string_view name, const Shape& shape);

// What stands before `marker`, the end of one name in every model. Kind::input unless exactly one
// of the names ends so.
std::string backbone_prefix(std::string_view path, std::span<const std::string_view> names,
                            std::string_view marker);

}  // namespace sft
