#include "train/metrics.h"

#include <algorithm>
#include <numeric>
#include <unordered_map>
#include <unordered_set>

#include "engine/check.h"
#include "engine/io/file.h"
#include "engine/utf8.h"
#include "train/lines.h"

namespace sft {

double Edits::rate() const {
  if (reference() == 0) fail(Kind::input, "error rate: the reference is empty");
  return static_cast<double>(total()) / static_cast<double>(reference());
}

Edits& Edits::operator+=(const Edits& other) {
  correct += other.correct;
  substitutions += other.substitutions;
  deletions += other.deletions;
  insertions += other.insertions;
  return *this;
}

std::string align(std::span<const int32_t> ref, std::span<const int32_t> hyp) {
  constexpr int32_t kSubstitution = 4, kGap = 3;
  constexpr size_t kMostCells = size_t{1} << 31;
  const size_t width = hyp.size() + 1;
  if (ref.size() >= kMostCells / width)
    fail(Kind::input, "alignment of {} with {} tokens (expected utterances, not whole texts)",
         ref.size(), hyp.size());
  std::string step((ref.size() + 1) * width, 'I');  // the last step into each cell
  std::vector<int32_t> cost(width), above(width);
  for (size_t j = 0; j < width; ++j) cost[j] = static_cast<int32_t>(j) * kGap;
  for (size_t i = 1; i <= ref.size(); ++i) {
    std::swap(cost, above);
    cost[0] = static_cast<int32_t>(i) * kGap;
    step[i * width] = 'D';
    for (size_t j = 1; j < width; ++j) {
      const bool same = ref[i - 1] == hyp[j - 1];
      const int32_t pair = above[j - 1] + (same ? 0 : kSubstitution);
      const int32_t insertion = cost[j - 1] + kGap, deletion = above[j] + kGap;
      cost[j] = std::min({pair, insertion, deletion});
      char& last = step[i * width + j];
      last = cost[j] == pair ? (same ? 'C' : 'S') : cost[j] == insertion ? 'I' : 'D';
    }
  }
  std::string path;
  for (size_t i = ref.size(), j = hyp.size(); i || j;) {
    path += step[i * width + j];
    if (path.back() != 'I') --i;
    if (path.back() != 'D') --j;
  }
  std::reverse(path.begin(), path.end());
  return path;
}

namespace {

// Equal strings, equal numbers.
class Interned {
 public:
  std::vector<int32_t> operator()(std::span<const std::string> tokens) {
    std::vector<int32_t> numbers;
    for (const std::string& token : tokens)
      numbers.push_back(
          number_of_.emplace(token, static_cast<int32_t>(number_of_.size())).first->second);
    return numbers;
  }

 private:
  std::unordered_map<std::string, int32_t> number_of_;
};

}  // namespace

std::string align(std::span<const std::string> ref, std::span<const std::string> hyp) {
  Interned numbers;
  const std::vector<int32_t> r = numbers(ref), h = numbers(hyp);
  return align(r, h);
}

Edits count_steps(std::string_view steps) {
  const auto count = [&](char step) { return std::count(steps.begin(), steps.end(), step); };
  return {count('C'), count('S'), count('D'), count('I')};
}

Edits count_edits(std::span<const int32_t> ref, std::span<const int32_t> hyp) {
  return count_steps(align(ref, hyp));
}

Edits count_edits(std::span<const std::string> ref, std::span<const std::string> hyp) {
  return count_steps(align(ref, hyp));
}

int64_t edit_distance(std::span<const int32_t> a, std::span<const int32_t> b) {
  std::vector<int64_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    int64_t diagonal = row[0];
    row[0] = static_cast<int64_t>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const int64_t pair = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({pair, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

std::vector<std::string> split_words(std::string_view text) {
  std::vector<std::string> words;
  for (size_t begin = text.find_first_not_of(" \t"); begin != std::string_view::npos;) {
    const size_t end = std::min(text.find_first_of(" \t", begin), text.size());
    words.emplace_back(text.substr(begin, end - begin));
    begin = text.find_first_not_of(" \t", end);
  }
  return words;
}

Edits word_edits(std::string_view ref, std::string_view hyp) {
  return count_edits(split_words(ref), split_words(hyp));
}

Edits character_edits(std::string_view ref, std::string_view hyp) {
  return count_edits(utf8_characters(ref), utf8_characters(hyp));
}

double accuracy(std::span<const int32_t> guess, std::span<const int32_t> truth) {
  CHECK(guess.size() == truth.size(), "accuracy: {} guesses for {}", guess.size(), truth.size());
  if (truth.empty()) fail(Kind::input, "accuracy: there is nothing to score");
  int64_t right = 0;
  for (size_t i = 0; i < truth.size(); ++i) right += guess[i] == truth[i];
  return static_cast<double>(right) / static_cast<double>(truth.size());
}

// ---- trn

std::string trn_line(std::string_view text, std::string_view id) {
  return text.empty() ? fmt::format("({})\n", id) : fmt::format("{} ({})\n", text, id);
}

namespace {

// Words that sclite reads as something else than words.
const std::string* markup(const std::vector<std::string>& words) {
  for (const std::string& word : words)
    if (word == "@" || word.find_first_of("{}") != std::string::npos ||
        (word.front() == '(' && word.back() == ')'))
      return &word;
  return nullptr;
}

TrnLine parse_line(std::string_view line, const std::string& where) {
  const size_t last = line.find_last_not_of(" \t");
  const size_t open = line.rfind('(');
  if (open == std::string_view::npos || line[last] != ')')
    fail(Kind::input, "{} {} (expected words, then an id in parentheses)", where,
         printable(line, 60));
  const std::string_view id = line.substr(open + 1, last - open - 1);
  if (id.empty() || id.find_first_of(" \t)") != std::string_view::npos)
    fail(Kind::input, "{} id '{}' (expected no spaces)", where, printable(id));
  const std::vector<std::string> words = split_words(line.substr(0, open));
  if (const std::string* word = markup(words))
    fail(Kind::input, "{} {} is mark-up of sclite (expected plain words)", where, printable(*word));
  return {std::string(id), fmt::format("{}", fmt::join(words, " ")), 0};
}

}  // namespace

std::vector<TrnLine> parse_trn(std::string_view text, const std::string& name) {
  std::vector<TrnLine> lines;
  std::unordered_map<std::string, size_t> line_of;
  for_each_line(text, name, [&](std::string_view line, const std::string& where, size_t number) {
    TrnLine parsed = parse_line(line, where);
    parsed.line = number;
    const auto [at, fresh] = line_of.emplace(parsed.id, number);
    if (!fresh)
      fail(Kind::input, "{} id {} is there twice, first in line {}", where, printable(parsed.id),
           at->second);
    lines.push_back(std::move(parsed));
  });
  return lines;
}

constexpr uint64_t kLargestTrn = 1 << 30;  // bytes

std::vector<TrnLine> read_trn(const std::string& path) {
  return parse_trn(read_text(path, kLargestTrn), path);
}

namespace {

// Ids of `have` that are not in `other`; at most three are named.
std::string missing_ids(const std::vector<TrnLine>& have, const std::vector<TrnLine>& other) {
  std::unordered_set<std::string_view> ids;
  for (const TrnLine& line : other) ids.insert(line.id);
  std::vector<std::string> missing;
  for (const TrnLine& line : have)
    if (!ids.count(line.id)) missing.push_back(printable(line.id));
  if (missing.empty()) return "";
  const size_t named = std::min<size_t>(missing.size(), 3);
  const std::span<const std::string> first(missing.data(), named);
  return fmt::format("{} ({}{})", missing.size(), fmt::join(first, ", "),
                     named < missing.size() ? ", ..." : "");
}

}  // namespace

std::vector<TrnPair> match_trn(const std::vector<TrnLine>& ref, const std::vector<TrnLine>& hyp) {
  const std::string without_hyp = missing_ids(ref, hyp), without_ref = missing_ids(hyp, ref);
  if (!without_hyp.empty() || !without_ref.empty())
    fail(Kind::input, "ids differ: {} have no hypothesis, {} have no reference",
         without_hyp.empty() ? "0" : without_hyp, without_ref.empty() ? "0" : without_ref);
  std::unordered_map<std::string_view, const TrnLine*> hyp_of;
  for (const TrnLine& line : hyp) hyp_of[line.id] = &line;
  std::vector<TrnPair> pairs;
  for (const TrnLine& line : ref) pairs.push_back({line.id, line.text, hyp_of[line.id]->text});
  return pairs;
}

}  // namespace sft
