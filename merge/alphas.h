// What `sft-merge` is told in short form: lists of alphas, and the names of its outputs.
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sft {

// "0.25", "0.1,0.25", or "0:1:0.1": first, last and step, both ends included. Values are rounded to
// 12 digits, so that a sweep has the 0.3 that "0.3" gives. Kind::usage for anything else, for the
// same value twice, and for more than 1000.
std::vector<double> parse_alphas(const std::string& text);

// Shortest form with at least two decimals: 0.10, 0.25, 0.125, 1.00.
std::string alpha_text(double alpha);

// Last part of a path without the ending of a model file: "runs/ted" -> "ted".
std::string model_name(std::string_view path);

// One path for each alpha. `out`:
//   empty                                   BASE-TUNED-a0.25.gguf in the current folder
//   ends with "/", or is a folder that is   the same names in it
//   not a model
//   else, one alpha                         out
//   else                                    NAME-a0.10.gguf for NAME.gguf (or .safetensors, or
//   none)
std::vector<std::string> output_paths(const std::string& out, const std::string& base,
                                      std::span<const std::string> tuned,
                                      std::span<const double> alphas);

}  // namespace sft
