#include "merge/alphas.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>

#include "engine/check.h"
#include "models/huggingface.h"

namespace sft {
namespace {

constexpr size_t kMostAlphas = 1000;

double number(std::string_view text, std::string_view whole) {
  double value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || stop != text.data() + text.size() || !std::isfinite(value))
    fail(Kind::usage, Hint{"one value 0.25, a list 0.1,0.25, or a sweep 0:1:0.1"},
         "--alpha: '{}' (expected numbers)", printable(whole));
  return value;
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (size_t at = 0; at <= text.size();) {
    const size_t end = std::min(text.find(separator, at), text.size());
    parts.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return parts;
}

std::vector<double> sweep(std::string_view text) {
  const std::vector<std::string_view> parts = split(text, ':');
  if (parts.size() != 3)
    fail(Kind::usage, "--alpha: '{}' (expected FIRST:LAST:STEP)", printable(text));
  const double first = number(parts[0], text), last = number(parts[1], text),
               step = number(parts[2], text);
  const double steps = std::floor((last - first) / step + 1e-9);
  if (!(step > 0) || !(steps >= 0) || steps >= static_cast<double>(kMostAlphas))
    fail(Kind::usage, "--alpha: '{}' (expected FIRST <= LAST, STEP > 0, at most {} values)",
         printable(text), kMostAlphas);
  std::vector<double> alphas;
  for (int i = 0; i <= static_cast<int>(steps); ++i)
    alphas.push_back(number(fmt::format("{:.12g}", first + i * step), text));
  return alphas;
}

std::string ending(std::string_view path) {
  for (std::string_view known : {".gguf", ".safetensors"})
    if (path.ends_with(known)) return std::string(known);
  return "";
}

bool is_folder_for_models(const std::string& path) {
  return path.ends_with('/') ||
         (std::filesystem::is_directory(path) && !is_huggingface_folder(path));
}

}  // namespace

std::vector<double> parse_alphas(const std::string& text) {
  std::vector<double> alphas;
  if (text.find(':') != std::string::npos) {
    alphas = sweep(text);
  } else {
    for (std::string_view part : split(text, ',')) alphas.push_back(number(part, text));
  }
  if (alphas.size() > kMostAlphas)
    fail(Kind::usage, "--alpha: {} values (at most {})", alphas.size(), kMostAlphas);
  for (size_t i = 0; i < alphas.size(); ++i)
    if (std::find(alphas.begin() + static_cast<int64_t>(i) + 1, alphas.end(), alphas[i]) !=
        alphas.end())
      fail(Kind::usage, "--alpha: '{}' has {} twice", printable(text), alphas[i]);
  return alphas;
}

std::string alpha_text(double alpha) {
  const std::string two = fmt::format("{:.2f}", alpha), shortest = fmt::format("{}", alpha);
  return std::stod(two) == alpha ? two : shortest;
}

std::string model_name(std::string_view path) {
  std::string whole = std::filesystem::absolute(path).lexically_normal().string();
  while (whole.size() > 1 && whole.back() == '/') whole.pop_back();
  std::string name = whole.substr(whole.rfind('/') + 1);
  name.resize(name.size() - ending(name).size());
  return name.empty() ? "model" : name;
}

std::vector<std::string> output_paths(const std::string& out, const std::string& base,
                                      std::span<const std::string> tuned,
                                      std::span<const double> alphas) {
  std::string start = out, end = ending(out);
  if (out.empty() || is_folder_for_models(out)) {
    std::vector<std::string> names;
    for (const std::string& path : tuned) names.push_back(model_name(path));
    const bool slash = out.empty() || out.ends_with('/');
    start =
        fmt::format("{}{}{}-{}", out, slash ? "" : "/", model_name(base), fmt::join(names, "+"));
    end = ".gguf";
  } else if (alphas.size() == 1) {
    return {out};
  } else {
    start.resize(out.size() - end.size());
  }
  std::vector<std::string> paths;
  for (double alpha : alphas)
    paths.push_back(fmt::format("{}-a{}{}", start, alpha_text(alpha), end));
  return paths;
}

}  // namespace sft
