#include "models/vocabulary.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>

#include "engine/check.h"
#include "engine/io/file.h"
#include "engine/utf8.h"

namespace sft {

bool is_special_unit(std::string_view unit) {
  const bool angles = unit.starts_with('<') && unit.ends_with('>');
  return unit.size() > 2 && (angles || (unit.starts_with('[') && unit.ends_with(']')));
}

bool units_are_characters(std::span<const std::string> units, int64_t blank) {
  bool delimiter = false;
  for (size_t id = 0; id < units.size(); ++id) {
    if (static_cast<int64_t>(id) == blank || is_special_unit(units[id])) continue;
    delimiter |= units[id] == "|";
    if (utf8_length(units[id]) != units[id].size()) return false;
  }
  return delimiter;
}

namespace {

using Json = nlohmann::json;

constexpr std::string_view kCharacters = "Wav2Vec2CTCTokenizer";
constexpr std::string_view kPhonemes = "Wav2Vec2PhonemeCTCTokenizer";

// Of every refusal: what can still be done with such a folder.
Hint without_head() { return Hint{"sft-convert --part encoder takes the model without its head"}; }

std::string shown(const Json& json) {
  return printable(json.dump(-1, ' ', false, Json::error_handler_t::replace), 60);
}

// A JSON object with every key once; of two, parsers keep the last.
class Object {
 public:
  Object(std::string path, std::string_view text) : path_(std::move(path)) {
    std::vector<std::set<std::string>> keys;  // of the objects that are open
    const auto once = [&](int depth, Json::parse_event_t event, Json& parsed) {
      const bool key = event == Json::parse_event_t::key;
      if (key || event == Json::parse_event_t::object_start)
        keys.resize(static_cast<size_t>(depth) + 1);
      if (key && !keys.back().insert(parsed.get<std::string>()).second)
        fail(Kind::input, without_head(), "{}: {} is there twice", printable(path_), shown(parsed));
      return true;
    };
    try {
      json_ = Json::parse(text, once);
    } catch (const Json::parse_error& e) {
      fail(Kind::input, without_head(), "{}: is no JSON at byte {}", printable(path_), e.byte);
    } catch (const Json::out_of_range&) {
      fail(Kind::input, without_head(), "{}: has a number beyond all limits", printable(path_));
    }
    if (!json_.is_object())
      fail(Kind::input, without_head(), "{}: not a JSON object", printable(path_));
  }

  const std::string& path() const { return path_; }
  const Json& json() const { return json_; }
  bool has(const char* key) const { return json_.contains(key); }

  // "x", or {"content": "x"}; nothing where it is null or absent.
  std::optional<std::string> token(const char* key) const {
    if (!has(key) || json_[key].is_null()) return std::nullopt;
    const Json& value = json_[key];
    const Json& text = value.is_object() && value.contains("content") ? value["content"] : value;
    if (!text.is_string()) wrong(key, value, "a string");
    return text.get<std::string>();
  }
  bool flag(const char* key) const {
    if (!has(key) || json_[key].is_null()) return false;
    if (!json_[key].is_boolean()) wrong(key, json_[key], "true or false");
    return json_[key].get<bool>();
  }
  [[noreturn]] void wrong(std::string_view key, const Json& value, std::string_view wanted) const {
    fail(Kind::input, without_head(), "{}: {} is {} (expected {})", printable(path_),
         printable(key), shown(value), wanted);
  }

 private:
  std::string path_;
  Json json_;
};

// How a tokenizer makes text of tokens.
struct Tokenizer {
  std::optional<std::string> pad = "<pad>", delimiter = "|";
  bool phonemes = false, lower = false;
  std::map<std::string, Json> added;  // tokens beside vocab.json, with their ids
  std::string where;                  // the file that says so
};

// The files of a folder, {} for one that is not there.
struct Files {
  const VocabularyTexts& texts;
  const std::string& folder;

  Object operator[](const char* name) const {
    const auto it = texts.find(name);
    return {folder + "/" + name, it == texts.end() ? "{}" : it->second};
  }
};

void read_added(const Files& files, const Object& config, Tokenizer& tokenizer) {
  if (config.has("added_tokens_decoder")) {
    const Json& decoder = config.json()["added_tokens_decoder"];
    if (!decoder.is_object()) config.wrong("added_tokens_decoder", decoder, "an object");
    for (const auto& [id, value] : decoder.items()) {
      const bool named = value.is_object() && value.contains("content");
      if (!named || !value["content"].is_string() || id.empty() || id.size() > 9 ||
          id.find_first_not_of("0123456789") != std::string::npos)
        config.wrong("added_tokens_decoder." + id, value, "an id with a content");
      tokenizer.added[value["content"].get<std::string>()] = std::stoull(id);
    }
  }
  const Object more = files["added_tokens.json"];
  for (const auto& [token, id] : more.json().items()) tokenizer.added[token] = id;
}

Tokenizer read_tokenizer(const Files& files, std::vector<std::string>& remarks) {
  const Object config = files["tokenizer_config.json"];
  const Object map = files["special_tokens_map.json"];
  Tokenizer t;
  t.where = config.path();
  const std::string name = config.token("tokenizer_class").value_or(std::string(kCharacters));
  t.phonemes = name == kPhonemes;
  if (!t.phonemes && name != kCharacters && name != "Wav2Vec2Tokenizer")
    config.wrong("tokenizer_class", name, fmt::format("{} or {}", kCharacters, kPhonemes));
  if (t.phonemes) t.delimiter.reset();
  if (config.has("pad_token")) t.pad = config.token("pad_token");
  if (!config.has("pad_token") && map.has("pad_token"))
    t.pad = map.token("pad_token"), t.where = map.path();
  if (config.has("pad_token") && map.token("pad_token").value_or(t.pad.value_or("")) != t.pad)
    map.wrong("pad_token", map.json()["pad_token"], "that of tokenizer_config.json");
  if (config.has("word_delimiter_token")) t.delimiter = config.token("word_delimiter_token");
  if (config.token("replace_word_delimiter_char").value_or(" ") != " ")
    config.wrong("replace_word_delimiter_char", config.json()["replace_word_delimiter_char"],
                 "a space");
  if (config.token("target_lang"))
    config.wrong("target_lang", config.json()["target_lang"], "one vocabulary, of one language");
  t.lower = config.flag("do_lower_case");
  if (config.flag("clean_up_tokenization_spaces"))
    remarks.push_back("tokenizer_config.json: clean_up_tokenization_spaces is not applied to text");
  read_added(files, config, t);
  return t;
}

// Tokens by id, as they are put in.
class Table {
 public:
  Table(std::string path, int64_t outputs)
      : path_(std::move(path)), tokens_(static_cast<size_t>(outputs)) {}

  // A token of vocab.json must be one of the outputs.
  void add(const std::string& token, const Json& id) {
    if (!is_id(id) || id.get<uint64_t>() >= tokens_.size())
      fail(Kind::input, without_head(), "{}: the id of {} is {} (expected 0 to {}, as lm_head has)",
           printable(path_), printable(token, 60), shown(id), tokens_.size() - 1);
    put(token, id.get<uint64_t>());
  }
  // False: there is no output of this id.
  bool add_beside(const std::string& token, const Json& id) {
    if (!is_id(id))
      fail(Kind::input, without_head(), "{}: the id of the added token {} is {}", printable(path_),
           printable(token, 60), shown(id));
    if (id.get<uint64_t>() >= tokens_.size()) return false;
    if (tokens_[id.get<size_t>()] != token) put(token, id.get<uint64_t>());
    return true;
  }
  std::vector<std::string> finish() const {
    std::vector<std::string> tokens;
    for (size_t id = 0; id < tokens_.size(); ++id) {
      if (!tokens_[id])
        fail(Kind::input, without_head(),
             "{}: no token has the id {} ({} tokens, but lm_head has {} outputs)", printable(path_),
             id, seen_.size(), tokens_.size());
      tokens.push_back(*tokens_[id]);
    }
    return tokens;
  }

 private:
  static bool is_id(const Json& id) { return id.is_number_unsigned(); }
  void put(const std::string& token, uint64_t id) {
    if (tokens_[id])
      fail(Kind::input, without_head(), "{}: {} and {} both have the id {}", printable(path_),
           printable(*tokens_[id], 60), printable(token, 60), id);
    if (!seen_.insert(token).second)
      fail(Kind::input, without_head(), "{}: {} has two ids", printable(path_),
           printable(token, 60));
    tokens_[id] = token;
  }
  std::string path_;
  std::vector<std::optional<std::string>> tokens_;
  std::set<std::string> seen_;
};

std::vector<std::string> read_tokens(const Files& files, const Tokenizer& tokenizer,
                                     int64_t outputs, std::vector<std::string>& remarks) {
  const Object vocabulary = files["vocab.json"];
  if (!files.texts.contains("vocab.json"))
    fail(Kind::input, without_head(), "{}: is not there (expected the {} units of lm_head)",
         printable(vocabulary.path()), outputs);
  Table table(vocabulary.path(), outputs);
  for (const auto& [token, id] : vocabulary.json().items()) table.add(token, id);
  for (const auto& [token, id] : tokenizer.added)
    if (!table.add_beside(token, id))
      remarks.push_back(fmt::format("token {} has the id {}, and lm_head {} outputs: left out",
                                    printable(token, 60), id.get<uint64_t>(), outputs));
  return table.finish();
}

int64_t index_of(const std::vector<std::string>& units, std::string_view unit) {
  const auto it = std::find(units.begin(), units.end(), unit);
  return it == units.end() ? -1 : it - units.begin();
}

int64_t blank_of(const std::vector<std::string>& units, const Tokenizer& tokenizer,
                 const std::string& path) {
  const int64_t blank = tokenizer.pad ? index_of(units, *tokenizer.pad) : -1;
  if (blank < 0)
    fail(Kind::input, without_head(),
         "{}: pad_token {} is not one of the units of {} (expected the blank of CTC)",
         printable(tokenizer.where), tokenizer.pad ? printable(*tokenizer.pad, 60) : "null",
         printable(path));
  return blank;
}

// The word delimiter is ours, |.
void name_delimiter(std::vector<std::string>& units, const Tokenizer& tokenizer,
                    const std::string& path) {
  const int64_t bar = index_of(units, "|");
  const int64_t at = tokenizer.delimiter ? index_of(units, *tokenizer.delimiter) : -1;
  if (tokenizer.phonemes ? at >= 0 : at < 0)
    fail(Kind::input, without_head(), "{}: word_delimiter_token {} is {} of the units of {}",
         printable(tokenizer.where),
         tokenizer.delimiter ? printable(*tokenizer.delimiter, 60) : "null",
         at < 0 ? "not one" : "one", printable(path));
  if (at < 0 || at == bar) return;
  if (bar >= 0)
    fail(Kind::input, without_head(), "{}: | is a unit, and not the word delimiter",
         printable(path));
  units[static_cast<size_t>(at)] = std::string(1, '|');
}

void check_units(const std::vector<std::string>& units, int64_t blank, bool phonemes,
                 const std::string& path) {
  for (size_t id = 0; id < units.size(); ++id) {
    const std::string& unit = units[id];
    const bool text = static_cast<int64_t>(id) != blank && !is_special_unit(unit);
    const bool spaces = unit.find_first_of(" \t\r\n") != std::string::npos;
    if (unit.empty() || spaces || (!phonemes && text && utf8_length(unit) != unit.size()))
      fail(Kind::input, without_head(), "{}: token {} of id {} (expected {} without spaces)",
           printable(path), shown(unit), id, phonemes ? "texts" : "single characters");
  }
  if (phonemes == units_are_characters(units, blank))
    fail(Kind::input, without_head(), "{}: {}", printable(path),
         phonemes ? "single characters with | (expected phonemes)"
                  : "the word delimiter is the blank, too");
}

// What the tokenizer does to texts: once, to the units.
void to_lower(std::vector<std::string>& units, const std::string& path) {
  std::set<std::string> seen;
  for (std::string& unit : units) {
    for (char& c : unit) {
      if (is_special_unit(unit)) break;
      if (static_cast<unsigned char>(c) >= 0x80)
        fail(Kind::input, Hint{"write the letters in lower case, without do_lower_case"},
             "{}: do_lower_case with {} (expected ASCII)", printable(path), printable(unit, 60));
      if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
    }
    if (!seen.insert(unit).second)
      fail(Kind::input, without_head(), "{}: do_lower_case makes two units {}", printable(path),
           printable(unit, 60));
  }
}

}  // namespace

Vocabulary parse_vocabulary(const VocabularyTexts& texts, const std::string& folder,
                            int64_t outputs) {
  Vocabulary vocabulary;
  const Files files{texts, folder};
  const std::string path = folder + "/vocab.json";
  const Tokenizer tokenizer = read_tokenizer(files, vocabulary.remarks);
  std::vector<std::string> units = read_tokens(files, tokenizer, outputs, vocabulary.remarks);
  const int64_t blank = blank_of(units, tokenizer, path);
  name_delimiter(units, tokenizer, path);
  check_units(units, blank, tokenizer.phonemes, path);
  if (tokenizer.lower) {
    to_lower(units, path);
    vocabulary.remarks.push_back("tokenizer_config.json: do_lower_case: units are in lower case");
  }
  vocabulary.task = {.kind = "ctc", .head = "linear", .blank = blank, .units = std::move(units)};
  return vocabulary;
}

Vocabulary read_vocabulary(const std::string& folder, int64_t outputs) {
  VocabularyTexts texts;
  for (const char* name :
       {"vocab.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"})
    if (const std::string path = folder + "/" + name; std::filesystem::exists(path))
      texts[name] = read_text(path);
  return parse_vocabulary(texts, folder, outputs);
}

int64_t special_id(const Config::Task& task, std::string_view name) {
  const int64_t id = index_of(task.units, name);
  return id == task.blank ? -1 : id;
}

namespace {

// The first of two names that is a unit; null: neither.
Json special(const Config::Task& task, std::string_view name, std::string_view other) {
  for (std::string_view one : {name, other})
    if (special_id(task, one) >= 0) return one;
  return nullptr;
}

std::string in_order_of_ids(const std::vector<std::string>& units) {
  std::set<std::string> seen;
  std::vector<std::string> lines;
  for (size_t id = 0; id < units.size(); ++id) {
    if (!seen.insert(units[id]).second)
      fail(Kind::usage, Hint{"GGUF and safetensors hold such units"},
           "vocab.json: the unit {} would be there twice", printable(units[id], 60));
    lines.push_back(fmt::format("  {}: {}", Json(units[id]).dump(), id));
  }
  return fmt::format("{{\n{}\n}}\n", fmt::join(lines, ",\n"));
}

}  // namespace

VocabularyTexts vocabulary_texts(const Config::Task& task) {
  const Json names = {{"pad_token", task.units.at(static_cast<size_t>(task.blank))},
                      {"unk_token", special(task, "<unk>", "[UNK]")},
                      {"bos_token", special(task, "<s>", "[BOS]")},
                      {"eos_token", special(task, "</s>", "[EOS]")}};
  Json config = names;
  const bool characters = units_are_characters(task.units, task.blank);
  config["tokenizer_class"] = characters ? kCharacters : kPhonemes;
  config["word_delimiter_token"] = characters ? Json("|") : Json(nullptr);
  config["do_lower_case"] = false;
  config["clean_up_tokenization_spaces"] = false;
  if (characters)
    config["replace_word_delimiter_char"] = " ";
  else
    config["do_phonemize"] = false;
  Json map = Json::object();
  for (const auto& [key, value] : names.items())
    if (!value.is_null()) map[key] = value;
  return {{"vocab.json", in_order_of_ids(task.units)},
          {"tokenizer_config.json", config.dump(2) + "\n"},
          {"special_tokens_map.json", map.dump(2) + "\n"}};
}

// ---- fairseq

namespace {

constexpr const char* kFairseqSpecials[] = {"<s>", "<pad>", "</s>", "<unk>"};

bool is_count(std::string_view text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string_view::npos;
}

// The symbol of "SYMBOL COUNT" or "SYMBOL COUNT #fairseq:overwrite"; empty: it is neither.
std::string symbol_of(std::string_view line) {
  constexpr std::string_view kFlag = " #fairseq:overwrite";
  if (line.ends_with(kFlag)) line.remove_suffix(kFlag.size());
  const size_t space = line.rfind(' ');
  if (space == std::string_view::npos || !is_count(line.substr(space + 1))) return "";
  const std::string_view symbol = line.substr(0, space);
  const bool plain = is_utf8(symbol) && symbol.find_first_of(" \t\r") == std::string_view::npos;
  return plain ? std::string(symbol) : "";
}

}  // namespace

std::vector<std::string> parse_fairseq_dictionary(std::string_view text, const std::string& path) {
  std::vector<std::string> units(std::begin(kFairseqSpecials), std::end(kFairseqSpecials));
  std::set<std::string> seen(units.begin(), units.end());
  size_t number = 1;
  for (size_t begin = 0; begin < text.size(); ++number) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line(text.substr(begin, end - begin));
    const std::string symbol = symbol_of(line);
    if (symbol.empty())
      fail(Kind::input, without_head(), "{}:{}: '{}' (expected SYMBOL COUNT)", printable(path),
           number, printable(line, 60));
    if (!seen.insert(symbol).second)
      fail(Kind::input, without_head(), "{}:{}: {} is there twice", printable(path), number,
           printable(symbol, 60));
    units.push_back(symbol);
    begin = end + 1;
  }
  return units;
}

std::vector<std::string> read_fairseq_dictionary(const std::string& path) {
  return parse_fairseq_dictionary(read_text(path), path);
}

std::string fairseq_dictionary(const Config::Task& task) {
  const size_t specials = std::size(kFairseqSpecials);
  if (task.blank != 0 || task.units.size() <= specials) return "";
  std::set<std::string> seen(std::begin(kFairseqSpecials), std::end(kFairseqSpecials));
  std::string text;
  for (size_t id = 1; id < task.units.size(); ++id) {
    const std::string& unit = task.units[id];
    if (id < specials ? !is_special_unit(unit) : !seen.insert(unit).second) return "";
    if (id >= specials) text += unit + " 1\n";
  }
  return text;
}

}  // namespace sft
