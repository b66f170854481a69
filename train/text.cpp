#include "train/text.h"

#include <algorithm>

#include "engine/check.h"
#include "engine/io/file.h"
#include "engine/nearest.h"
#include "engine/utf8.h"
#include "models/vocabulary.h"
#include "train/metrics.h"

namespace sft {

// ---- normalisation

namespace {

bool kept(const std::string& character) {
  const char c = character[0];
  return character.size() == 1 && ((c >= 'A' && c <= 'Z') || c == '\'' || c == ' ');
}

}  // namespace

std::string normalise_upper(std::string_view text, Deleted* deleted) {
  std::string upper;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (c == ' ' && text.substr(i + 1).starts_with('\'')) continue;
    upper += c == '-' ? ' ' : c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
  }
  std::string out;
  for (const std::string& character : utf8_characters(upper)) {
    if (kept(character)) {
      out += character;
    } else if (deleted) {
      ++(*deleted)[character];
    }
  }
  return fmt::format("{}", fmt::join(split_words(out), " "));
}

Normalise parse_normalise(std::string_view name) {
  if (name == "upper") return Normalise::upper;
  if (name == "none") return Normalise::none;
  fail(Kind::usage, "data.normalize: {} (expected upper or none)", printable(name));
}

// ---- units

namespace {

void check_symbol(const std::string& symbol, size_t id) {
  if (symbol.empty()) fail(Kind::input, "units: unit {} is empty", id);
  if (!is_utf8(symbol) || symbol.find_first_of(" \t\r\n") != std::string::npos)
    fail(Kind::input, "units: unit {} is '{}' (expected UTF-8 without spaces)", id,
         printable(symbol));
}

}  // namespace

Units Units::from_symbols(std::vector<std::string> symbols, int blank) {
  Units units;
  if (symbols.size() < 2) fail(Kind::input, "units: {} (expected at least two)", symbols.size());
  if (blank < 0 || blank >= static_cast<int>(symbols.size()))
    fail(Kind::input, "units: the blank is {} of {}", blank, symbols.size());
  units.blank_ = blank;
  units.symbols_ = std::move(symbols);
  for (size_t id = 0; id < units.symbols_.size(); ++id) {
    const std::string& symbol = units.symbols_[id];
    check_symbol(symbol, id);
    if (units.special(static_cast<int32_t>(id))) continue;
    const auto [at, fresh] = units.id_of_.emplace(symbol, static_cast<int32_t>(id));
    if (!fresh)
      fail(Kind::input, "units: {} is there twice, as {} and {}", printable(symbol), at->second,
           id);
  }
  units.characters_ = units_are_characters(units.symbols_, blank);
  return units;
}

Units Units::chars() {
  return from_symbols({"<pad>", "<s>", "</s>", "<unk>", "|", "E", "T", "A", "O", "N", "I",
                       "H",     "S",   "R",    "D",     "L", "U", "M", "W", "C", "F", "G",
                       "Y",     "P",   "B",    "V",     "K", "'", "X", "J", "Q", "Z"});
}

Units Units::phones() {
  return from_symbols({"<pad>", "AA", "AE", "AH", "AO", "AW", "AY", "B",  "CH", "D",
                       "DH",    "EH", "ER", "EY", "F",  "G",  "HH", "IH", "IY", "JH",
                       "K",     "L",  "M",  "N",  "NG", "OW", "OY", "P",  "R",  "S",
                       "SH",    "T",  "TH", "UH", "UW", "V",  "W",  "Y",  "Z",  "ZH"});
}

Units Units::from_file(const std::string& path) {
  std::vector<std::string> symbols;
  const std::string text = read_text(path);
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    symbols.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  if (symbols.empty() || symbols[0] != "<pad>") symbols.insert(symbols.begin(), "<pad>");
  try {
    return from_symbols(std::move(symbols));
  } catch (const Error& e) {
    fail(e.kind, "{}: {}", printable(path), e.message);
  }
}

Units Units::named(const std::string& name) {
  if (name == "chars") return chars();
  if (name == "phones") return phones();
  return from_file(name);
}

bool Units::special(int32_t id) const { return id == blank_ || is_special_unit(symbols_[id]); }

std::string Units::first_units() const {
  constexpr size_t kNamed = 8;
  std::vector<std::string> named;
  for (const auto& [symbol, id] : id_of_)
    if (named.size() < kNamed) named.push_back(printable(symbol));
  return fmt::format("{}{}", fmt::join(named, " "), id_of_.size() > kNamed ? " ..." : "");
}

std::vector<int32_t> Units::encode(std::string_view text, std::string_view where) const {
  constexpr size_t kLongest = 4096;
  std::vector<int32_t> ids;
  for (const std::string& symbol : characters_ ? utf8_characters(text) : split_words(text)) {
    const auto at = id_of_.find(symbol == " " && characters_ ? "|" : symbol);
    if (at == id_of_.end() || (symbol == "|" && characters_))
      fail(Kind::input, Hint{"sft-data check lists every row like this"},
           "{}: '{}' is not a unit (expected one of {}: {})", where, printable(symbol),
           id_of_.size(), first_units());
    ids.push_back(at->second);
  }
  if (ids.size() > kLongest)
    fail(Kind::input, "{}: {} units (expected at most {})", where, ids.size(), kLongest);
  return ids;
}

std::string Units::decode(std::span<const int32_t> ids) const {
  std::vector<std::string> out;
  for (int32_t id : ids) {
    CHECK(id >= 0 && id < size(), "units: id {} of {}", id, size());
    if (special(id)) continue;
    out.push_back(characters_ && symbols_[id] == "|" ? " " : symbols_[id]);
  }
  std::string text = fmt::format("{}", fmt::join(out, characters_ ? "" : " "));
  text.erase(0, std::min(text.find_first_not_of(' '), text.size()));
  text.erase(text.find_last_not_of(' ') + 1);
  return text;
}

// ---- targets

TargetText target_text(const std::string& units_name, Normalise normalise) {
  if (units_name == "phones") return {"phones", Normalise::none};
  return {"text", normalise};
}

std::string read_target(const Manifest& manifest, const Utterance& row, const TargetText& target,
                        Deleted* deleted) {
  const std::string_view text = manifest.required(row, target.column);
  if (target.normalise == Normalise::none) return std::string(text);
  std::string normalised = normalise_upper(text, deleted);
  if (normalised.empty())
    fail(Kind::input, "{}: nothing of its {} is left by the normaliser: '{}'", manifest.where(row),
         target.column, printable(text, 60));
  return normalised;
}

// ---- CTC

int64_t ctc_frames_needed(std::span<const int32_t> labels) {
  int64_t frames = static_cast<int64_t>(labels.size());
  for (size_t i = 1; i < labels.size(); ++i) frames += labels[i] == labels[i - 1];
  return frames;
}

std::vector<int32_t> ctc_collapse(std::span<const int32_t> path, int blank) {
  std::vector<int32_t> ids;
  int32_t last = blank;
  for (int32_t id : path) {
    if (id != last && id != blank) ids.push_back(id);
    last = id;
  }
  return ids;
}

std::vector<int32_t> greedy_ctc(Tensor logits, int blank) {
  const float* row = logits.f32();
  const int64_t units = logits.width();
  std::vector<int32_t> path;
  for (int64_t t = 0; t < logits.rows(); ++t, row += logits.row_stride)
    path.push_back(static_cast<int32_t>(std::max_element(row, row + units) - row));
  return ctc_collapse(path, blank);
}

}  // namespace sft
