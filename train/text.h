// Text to units and back: the normaliser, the lists of units, greedy CTC decoding
// (docs/contract.md 7; wav2vec 2.0's 32 characters, Baevski et al. 2020, arXiv:2006.11477).
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "engine/tensor.h"
#include "train/manifest.h"

namespace sft {

// What the normaliser took away, by character (code point).
using Deleted = std::map<std::string, int64_t>;

// In this order: upper case (a-z), " '" becomes "'", - becomes a space, everything outside A-Z, '
// and space is deleted (and counted), runs of spaces become one, none at the ends.
std::string normalise_upper(std::string_view text, Deleted* deleted = nullptr);

enum class Normalise { upper, none };              // data.normalize
Normalise parse_normalise(std::string_view name);  // "upper", "none"; else Kind::usage

// The outputs of a CTC head, by id. Characters, with | between words, if every unit other than
// the specials <...> and [...] is one character and | is among them; else tokens between spaces.
class Units {
 public:
  // <pad> (the blank), <s>, </s>, <unk>, |, E T A O N I H S R D L U M W C F G Y P B V K ' X J Q Z
  static Units chars();
  static Units phones();  // <pad>, then the 39 phones of CMUdict without stress, in their order
  // One unit a line; <pad> is put in front where the file does not begin with it.
  static Units from_file(const std::string& path);
  // A model's own list (sft.task.units). Kind::input: empty, twice the same, no UTF-8, spaces.
  static Units from_symbols(std::vector<std::string> symbols, int blank = 0);
  // data.units: "chars", "phones", or a file.
  static Units named(const std::string& name);

  const std::vector<std::string>& symbols() const { return symbols_; }
  int size() const { return static_cast<int>(symbols_.size()); }
  int blank() const { return blank_; }
  bool characters() const { return characters_; }

  // No delimiter at the ends, no special. `where` stands at the head of the message that names a
  // symbol that is not a unit.
  std::vector<int32_t> encode(std::string_view text, std::string_view where) const;
  // Specials and the blank are dropped, | becomes a space; no space at the ends.
  std::string decode(std::span<const int32_t> ids) const;

 private:
  bool special(int32_t id) const;
  std::string first_units() const;  // for messages

  std::vector<std::string> symbols_;
  std::map<std::string, int32_t, std::less<>> id_of_;  // without specials
  int blank_ = 0;
  bool characters_ = false;
};

// Where targets come from: the column `phones` for the unit list of that name, else `text`, which
// is normalised.
struct TargetText {
  std::string column;
  Normalise normalise;
};
TargetText target_text(const std::string& units_name, Normalise normalise);
// The row's target; Kind::input, naming the row, if it has none.
std::string read_target(const Manifest& manifest, const Utterance& row, const TargetText& target,
                        Deleted* deleted = nullptr);

// ---- CTC

// Frames without which `labels` cannot be emitted: one each, and one between repeats.
int64_t ctc_frames_needed(std::span<const int32_t> labels);

// Repeats collapsed, then blanks dropped.
std::vector<int32_t> ctc_collapse(std::span<const int32_t> path, int blank);

// logits [T, V] f32 on the host -> ctc_collapse of the largest of every frame (ties: the smaller
// id).
std::vector<int32_t> greedy_ctc(Tensor logits, int blank);

}  // namespace sft
