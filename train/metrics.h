// What is reported: error rates with sclite's alignment, accuracy; and trn files.
//
// Alignment: weights substitution 4, insertion 3, deletion 3; of equal cost, read from the end, a
// match or substitution before an insertion before a deletion. That is NIST sclite (sctk 2.4.10),
// whose counts are reproduced one by one. Its sum of edits can exceed the Levenshtein distance
// (it prefers six gaps to five substitutions): 0.2 % of the edits of random pairs.
// Rates are fractions of the corpus: edits / reference tokens.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace sft {

struct Edits {
  int64_t correct = 0, substitutions = 0, deletions = 0, insertions = 0;

  int64_t total() const { return substitutions + deletions + insertions; }
  int64_t reference() const { return correct + substitutions + deletions; }
  double rate() const;  // Kind::input if the reference has no tokens
  Edits& operator+=(const Edits& other);
  bool operator==(const Edits&) const = default;
};

// One letter per step from the start: C, S, D or I.
std::string align(std::span<const int32_t> ref, std::span<const int32_t> hyp);
std::string align(std::span<const std::string> ref, std::span<const std::string> hyp);

Edits count_steps(std::string_view steps);
Edits count_edits(std::span<const int32_t> ref, std::span<const int32_t> hyp);
Edits count_edits(std::span<const std::string> ref, std::span<const std::string> hyp);

// Levenshtein 1966, unit costs.
int64_t edit_distance(std::span<const int32_t> a, std::span<const int32_t> b);

std::vector<std::string> split_words(std::string_view text);  // on runs of spaces and tabs
Edits word_edits(std::string_view ref, std::string_view hyp);
Edits character_edits(std::string_view ref, std::string_view hyp);  // code points, spaces too

// Share of equal entries; Kind::input if there are none.
double accuracy(std::span<const int32_t> guess, std::span<const int32_t> truth);

// ---- trn files: one utterance a line, `words (id)`

struct TrnLine {
  std::string id, text;
  size_t line = 0;  // from 1
};

std::string trn_line(std::string_view text, std::string_view id);  // with its \n

// Kind::input, beginning with "FILE:LINE:", for anything but `words (id)` with ids once each, and
// for sclite's mark-up (alternatives in braces, optional words in parentheses, @), which would be
// scored otherwise there than here. Empty lines and lines that begin with ;; are passed over.
std::vector<TrnLine> parse_trn(std::string_view text, const std::string& name);
std::vector<TrnLine> read_trn(const std::string& path);

struct TrnPair {
  std::string id, ref, hyp;
};
// In the order of `ref`. Kind::input names the ids that are in one only.
std::vector<TrnPair> match_trn(const std::vector<TrnLine>& ref, const std::vector<TrnLine>& hyp);

}  // namespace sft
