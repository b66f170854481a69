#include "train/stm.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <unordered_map>

#include "engine/check.h"
#include "engine/io/file.h"
#include "train/lines.h"
#include "train/text.h"

namespace sft {

namespace fs = std::filesystem;

// ---- STM

namespace {

// Takes the first token, and the space behind it, off `line`.
std::string_view take_token(std::string_view& line) {
  line.remove_prefix(std::min(line.find_first_not_of(" \t"), line.size()));
  const size_t end = std::min(line.find_first_of(" \t"), line.size());
  const std::string_view token = line.substr(0, end);
  line.remove_prefix(std::min(end + 1, line.size()));
  return token;
}

double parse_time(std::string_view token, const std::string& where) {
  double seconds = 0;
  const auto [stop, error] = std::from_chars(token.data(), token.data() + token.size(), seconds);
  if (error != std::errc() || stop != token.data() + token.size() || !std::isfinite(seconds) ||
      seconds < 0)
    fail(Kind::input, "{} '{}' is no time (expected file channel speaker start end <label> text)",
         where, printable(token));
  return seconds;
}

std::string clean_text(std::string_view text) {
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  const size_t last = text.find_last_of(" \t") + 1;  // npos + 1 is 0
  if (last < text.size() && text[last] == '(') text = text.substr(0, last);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return std::string(text);
}

StmSegment parse_segment(std::string_view line, const std::string& where) {
  StmSegment s;
  s.file = take_token(line);
  s.channel = take_token(line);
  s.speaker = take_token(line);
  s.start = parse_time(take_token(line), where);
  s.end = parse_time(take_token(line), where);
  if (s.end <= s.start) fail(Kind::input, "{} ends at {}, starts at {}", where, s.end, s.start);
  if (line.starts_with('<') && !line.starts_with("<unk>")) s.label = take_token(line);
  s.text = clean_text(line);
  return s;
}

}  // namespace

std::vector<StmSegment> parse_stm(std::string_view text, const std::string& name) {
  std::vector<StmSegment> segments;
  for_each_line(text, name, [&](std::string_view line, const std::string& where, size_t number) {
    segments.push_back(parse_segment(line, where));
    segments.back().line = number;
  });
  return segments;
}

// ---- TED-LIUM

namespace {

constexpr uint64_t kLargestTranscript = 64 << 20;  // bytes, of one talk

// One way the corpus is distributed: the folders of its splits.
struct Tree {
  const char *train, *dev, *test;
  const char* folder(std::string_view split) const {
    return split == "train" ? train : split == "dev" ? dev : test;
  }
};
constexpr Tree kTrees[] = {{"data", "legacy/dev", "legacy/test"}, {"train", "dev", "test"}};

bool has_split(const fs::path& folder) {
  std::error_code error;
  return fs::is_directory(folder / "stm", error) && fs::is_directory(folder / "sph", error);
}

[[noreturn]] void no_corpus(const std::string& folder, std::string_view split) {
  fail(Kind::input,
       Hint{"TED-LIUM release 3: https://www.openslr.org/51/ (50 GB); name the unpacked folder, "
            "or choose --splits"},
       "{}: no split {} of TED-LIUM here (expected this tree\n{})", printable(folder), split,
       ted_tree(folder));
}

// The tree that has every split asked for.
const Tree& find_tree(const std::string& folder, const std::vector<std::string>& splits) {
  const std::string* missing = nullptr;
  for (const Tree& tree : kTrees) {
    const auto lacks = [&](const std::string& split) {
      return !has_split(fs::path(folder) / tree.folder(split));
    };
    const auto first = std::find_if(splits.begin(), splits.end(), lacks);
    if (first == splits.end()) return tree;
    if (!missing || first != splits.begin()) missing = &*first;
  }
  no_corpus(folder, *missing);
}

std::vector<fs::path> stm_files(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder))
    if (entry.path().extension() == ".stm") files.push_back(entry.path());
  std::sort(files.begin(), files.end(), [](const fs::path& a, const fs::path& b) {
    return a.filename().native() < b.filename().native();
  });
  if (files.empty()) fail(Kind::input, "{}: no .stm files", printable(folder.native()));
  return files;
}

class TedImporter {
  struct Candidate {
    Utterance row;
    int64_t deleted;  // characters, by the normaliser
  };

 public:
  TedImporter(const std::string& folder, const TedOptions& options)
      : folder_(fs::absolute(folder).lexically_normal()), options_(options) {
    result_.manifest.name = folder;
    result_.manifest.columns = {"id",   "path",  "seconds", "speaker",
                                "text", "split", "start",   "end"};
  }

  TedImport run() {
    const Tree& tree = find_tree(folder_.native(), options_.splits);
    for (const std::string& split : options_.splits) {
      candidates_.clear();
      read_split(folder_ / tree.folder(split), split);
      if (split == "train") choose_training();
      for (Candidate& candidate : candidates_) {
        result_.deleted_characters += candidate.deleted;
        result_.manifest.rows.push_back(std::move(candidate.row));
      }
    }
    return std::move(result_);
  }

 private:
  void read_split(const fs::path& folder, const std::string& split) {
    for (const fs::path& stm : stm_files(folder / "stm"))
      for (const StmSegment& s : parse_stm(read_text(stm, kLargestTranscript), stm))
        if (usable(s)) add(s, folder / "sph", stm, split);
  }

  bool usable(const StmSegment& s) {
    const double seconds = s.end - s.start;
    int64_t* reason = s.text == "ignore_time_segment_in_scoring"  ? &result_.ignored
                      : s.text.find("<unk>") != std::string::npos ? &result_.unknown_words
                      : seconds < options_.min_seconds            ? &result_.too_short
                      : seconds > options_.max_seconds            ? &result_.too_long
                      : normalise_upper(s.text).empty()           ? &result_.empty
                                                                  : nullptr;
    if (reason) ++*reason;
    return !reason;
  }

  void add(const StmSegment& s, const fs::path& audio, const fs::path& stm,
           const std::string& split) {
    const fs::path sph = audio / (s.file + ".sph");
    std::error_code error;
    if (!fs::is_regular_file(sph, error))
      fail(Kind::input, "{}:{}: no audio {}", printable(stm.native()), s.line,
           printable(sph.native()));
    Utterance row;
    row.id = fmt::format("{}_{:07.0f}_{:07.0f}", s.file, s.start * 1000, s.end * 1000);
    row.seconds = s.end - s.start;
    Deleted deleted;
    const std::string text = normalise_upper(s.text, &deleted);
    row.values = {
        row.id, sph.native(), fmt::format("{:.3f}", row.seconds), s.speaker,
        text,   split,        fmt::format("{:.3f}", s.start),     fmt::format("{:.3f}", s.end)};
    int64_t deleted_count = 0;
    for (const auto& [character, count] : deleted) deleted_count += count;
    candidates_.push_back({std::move(row), deleted_count});
  }

  void choose_training() {
    if (options_.train_ids) return take_listed(*options_.train_ids);
    if (options_.train_hours <= 0) return;
    double seconds = 0;
    size_t count = 0;
    while (count < candidates_.size() && seconds <= options_.train_hours * 3600)
      seconds += candidates_[count++].row.seconds;
    candidates_.erase(candidates_.begin() + static_cast<int64_t>(count), candidates_.end());
  }

  void take_listed(const std::vector<std::string>& ids) {
    std::unordered_map<std::string, const Candidate*> candidate_of;
    for (const Candidate& candidate : candidates_) candidate_of[candidate.row.id] = &candidate;
    std::vector<Candidate> chosen;
    for (const std::string& id : ids) {
      const auto at = candidate_of.find(id);
      if (at == candidate_of.end())
        fail(Kind::input, "subset list: {} is no usable training segment", printable(id));
      chosen.push_back(*at->second);
    }
    candidates_ = std::move(chosen);
  }

  fs::path folder_;
  const TedOptions& options_;
  TedImport result_;
  std::vector<Candidate> candidates_;  // of the split being read
};

}  // namespace

TedImport import_ted(const std::string& folder, const TedOptions& options) {
  return TedImporter(folder, options).run();
}

bool is_ted(const std::string& folder) {
  return std::any_of(std::begin(kTrees), std::end(kTrees), [&](const Tree& tree) {
    return has_split(fs::path(folder) / tree.train) && has_split(fs::path(folder) / tree.dev) &&
           has_split(fs::path(folder) / tree.test);
  });
}

std::string ted_tree(const std::string& folder) {
  return fmt::format(
      "  {}/\n"
      "    data/         {{sph/*.sph, stm/*.stm}}   train\n"
      "    legacy/dev/   {{sph/*.sph, stm/*.stm}}   dev\n"
      "    legacy/test/  {{sph/*.sph, stm/*.stm}}   test\n"
      "  or, as releases 1 and 2, train/, dev/ and test/ in their place",
      printable(folder));
}

}  // namespace sft
