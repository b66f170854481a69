// The vocabulary of a CTC head as transformers and fairseq keep it beside a model
// (docs/model-files.md). Ours is sft.task.units with sft.task.blank, and | between words.
#pragma once

#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "models/config.h"

namespace sft {

// A unit that is no text: <s>, <unk>, [PAD].
bool is_special_unit(std::string_view unit);

// Units other than the blank and specials are single characters, with | among them: text is their
// row. Else units are tokens, with spaces between them.
bool units_are_characters(std::span<const std::string> units, int64_t blank);

struct Vocabulary {
  Config::Task task;                 // a linear CTC head with its units and blank
  std::vector<std::string> remarks;  // what is not as it is in the folder, one line each
};

// The texts of vocab.json, tokenizer_config.json, special_tokens_map.json and added_tokens.json, by
// these names; all but the first may be absent.
using VocabularyTexts = std::map<std::string, std::string, std::less<>>;

// Of a head of `outputs` rows. Kind::input, naming file and field (`folder` stands before them),
// unless every output has exactly one token, the blank (pad_token) is one of them, and texts come
// out as the tokenizer (Wav2Vec2CTCTokenizer, Wav2Vec2PhonemeCTCTokenizer) makes them.
Vocabulary parse_vocabulary(const VocabularyTexts& texts, const std::string& folder,
                            int64_t outputs);
Vocabulary read_vocabulary(const std::string& folder, int64_t outputs);

// The same texts of a linear CTC head. Kind::usage if a unit is there twice.
VocabularyTexts vocabulary_texts(const Config::Task& task);

// fairseq's dict.ltr.txt, lines of "SYMBOL COUNT": behind its <s>, which is the blank, <pad>, </s>
// and <unk>. Kind::input naming the line.
std::vector<std::string> parse_fairseq_dictionary(std::string_view text, const std::string& path);
std::vector<std::string> read_fairseq_dictionary(const std::string& path);
// That file for these units; empty: their blank is not 0, the first four are not the blank and
// three specials, or a symbol is there twice.
std::string fairseq_dictionary(const Config::Task& task);

// Id of the unit that transformers would call bos_token, ... ("<s>", "[BOS]"); -1: none. The blank
// has no other part.
int64_t special_id(const Config::Task& task, std::string_view name);

}  // namespace sft
