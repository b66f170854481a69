#include "train/manifest.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <filesystem>
#include <set>
#include <unordered_map>

#include "engine/check.h"
#include "engine/io/file.h"
#include "engine/nearest.h"
#include "engine/utf8.h"

namespace sft {

namespace fs = std::filesystem;

namespace {

constexpr uint64_t kLargestManifest = 1 << 30;  // bytes; a million rows have about 200 MiB

std::vector<std::string> split_tabs(std::string_view line) {
  std::vector<std::string> fields;
  for (size_t begin = 0;;) {
    const size_t end = line.find('\t', begin);
    fields.emplace_back(line.substr(begin, end - begin));
    if (end == std::string_view::npos) return fields;
    begin = end + 1;
  }
}

// Reads one manifest; every message begins with "FILE:LINE:".
class Reader {
 public:
  Reader(std::string_view text, const std::string& name) : text_(text) {
    manifest_.name = name;
    folder_ = fs::path(name).parent_path();
  }

  Manifest read() {
    if (text_.substr(0, 3) == "\xEF\xBB\xBF")
      bad("begins with a byte order mark (expected UTF-8 without)");
    if (text_.empty()) bad("is empty (expected a header line)");
    while (!text_.empty()) {
      const std::string_view line = next_line();
      if (line_ == 1) {
        header(line);
      } else {
        row(line);
      }
    }
    return std::move(manifest_);
  }

 private:
  template <class... Args>
  [[noreturn]] void bad(fmt::format_string<Args...> format, Args&&... args) const {
    fail(Kind::input, "{}:{}: {}", printable(manifest_.name), std::max<size_t>(line_, 1),
         fmt::format(format, std::forward<Args>(args)...));
  }

  std::string_view next_line() {
    ++line_;
    const size_t end = std::min(text_.find('\n'), text_.size());
    const std::string_view line = text_.substr(0, end);
    text_.remove_prefix(std::min(end + 1, text_.size()));
    if (line.empty()) bad("is an empty line");
    if (line.back() == '\r') bad("ends with CR LF (expected LF alone)");
    for (char c : line)
      if ((static_cast<uint8_t>(c) < 0x20 && c != '\t') || c == 0x7F)
        bad("has a control character, byte {}", static_cast<int>(static_cast<uint8_t>(c)));
    if (!is_utf8(line)) bad("is not UTF-8: {}", printable(line, 60));
    return line;
  }

  void header(std::string_view line) {
    std::vector<std::string>& columns = manifest_.columns;
    columns = split_tabs(line);
    for (size_t i = 0; i < columns.size(); ++i) {
      if (columns[i].empty()) bad("column {} has no name", i + 1);
      if (std::find(columns.begin(), columns.begin() + static_cast<int64_t>(i), columns[i]) !=
          columns.begin() + static_cast<int64_t>(i))
        bad("column {} is there twice", printable(columns[i]));
    }
    for (const char* name : {"id", "path", "seconds"})
      if (!manifest_.has(name))
        bad("has no column {} (expected a header line with id, path and seconds, tab-separated)",
            name);
    id_ = manifest_.column("id");
    path_ = manifest_.column("path");
    seconds_ = manifest_.column("seconds");
    cut_ = manifest_.has("start");
    if (cut_ != manifest_.has("end")) bad("has one of the columns start and end (expected both)");
    if (cut_) start_ = manifest_.column("start"), end_ = manifest_.column("end");
  }

  void row(std::string_view line) {
    Utterance u;
    u.values = split_tabs(line);
    if (u.values.size() != manifest_.columns.size())
      bad("has {} fields (expected {})", u.values.size(), manifest_.columns.size());
    u.id = identifier(u.values[id_]);
    u.path = u.values[path_];
    if (u.path.empty() || u.path == "-") bad("id {} has no path", printable(u.id));
    u.file = fs::path(u.path).is_absolute() ? u.path : (folder_ / u.path).string();
    u.seconds = seconds(u.values[seconds_], "seconds");
    if (cut_) read_cut(u);
    if (manifest_.rows.size() >= UINT32_MAX) bad("is one row too many");
    u.index = static_cast<uint32_t>(manifest_.rows.size());
    u.line = line_;
    manifest_.rows.push_back(std::move(u));
  }

  // Ids stand in trn files as "words (id)".
  std::string identifier(const std::string& id) {
    if (id.empty() || id == "-") bad("has no id");
    if (id.find_first_of(" ()") != std::string::npos)
      bad("id {} (expected no spaces and no parentheses)", printable(id));
    const auto [at, fresh] = line_of_.emplace(id, line_);
    if (!fresh) bad("id {} is there twice, first in line {}", printable(id), at->second);
    return id;
  }

  void read_cut(Utterance& u) {
    const std::string& start = u.values[start_];
    const std::string& end = u.values[end_];
    if (start != "-") u.start = seconds(start, "start");
    if (end != "-") u.end = seconds(end, "end");
  }

  double seconds(const std::string& text, const char* column) const {
    double value = 0;
    const char* last = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), last, value);
    if (error != std::errc() || stop != last || !std::isfinite(value) || value < 0)
      bad("{} is '{}' (expected seconds)", column, printable(text));
    return value;
  }

  std::string_view text_;  // what is left
  Manifest manifest_;
  fs::path folder_;
  size_t line_ = 0, id_ = 0, path_ = 0, seconds_ = 0, start_ = 0, end_ = 0;
  bool cut_ = false;
  std::unordered_map<std::string, size_t> line_of_;  // by id
};

}  // namespace

bool Manifest::has(std::string_view column) const {
  return std::find(columns.begin(), columns.end(), column) != columns.end();
}

size_t Manifest::column(std::string_view column) const {
  const auto at = std::find(columns.begin(), columns.end(), column);
  if (at == columns.end())
    fail(Kind::input, Hint{did_you_mean(column, columns)}, "{}: no column {} (it has {})",
         printable(name), printable(column), fmt::join(columns, ", "));
  return static_cast<size_t>(at - columns.begin());
}

std::string_view Manifest::value(const Utterance& row, std::string_view name) const {
  const std::string& value = row.values[column(name)];
  return value == "-" ? std::string_view() : std::string_view(value);
}

std::string_view Manifest::required(const Utterance& row, std::string_view name) const {
  const std::string_view found = value(row, name);
  if (found.empty()) fail(Kind::input, "{} has no {}", where(row), printable(name));
  return found;
}

std::string Manifest::where(const Utterance& row) const {
  return fmt::format("{}:{}: id {}", printable(name), row.line, printable(row.id));
}

Manifest Manifest::select(std::string_view split, std::string_view split_column) const {
  const size_t at = column(split_column);
  Manifest chosen{name, columns, {}};
  std::set<std::string> there;
  for (const Utterance& row : rows) {
    there.insert(row.values[at]);
    if (row.values[at] == split) chosen.rows.push_back(row);
  }
  if (chosen.rows.empty())
    fail(Kind::input, "{}: no row has {} in column {} (there: {})", printable(name),
         printable(split), printable(split_column),
         printable(fmt::format("{}", fmt::join(there, ", "))));
  return chosen;
}

Manifest parse_manifest(std::string_view text, const std::string& name) {
  return Reader(text, name).read();
}

Manifest read_manifest(const std::string& path) {
  return parse_manifest(read_text(path, kLargestManifest), path);
}

std::string manifest_text(const Manifest& manifest) {
  std::string text = fmt::format("{}\n", fmt::join(manifest.columns, "\t"));
  for (const Utterance& row : manifest.rows)
    text += fmt::format("{}\n", fmt::join(row.values, "\t"));
  return text;
}

std::string row_fault(const Utterance& u, const RowLimits& limits) {
  constexpr double kRounding = 0.02;  // seconds; manifests are written with few digits
  std::error_code error;
  if (!fs::is_regular_file(u.file, error)) return "no such file: " + printable(u.file);
  if (u.seconds < limits.min_seconds)
    return fmt::format("{} s (expected at least {})", u.seconds, limits.min_seconds);
  if (u.seconds > limits.max_seconds)
    return fmt::format("{} s (expected at most {})", u.seconds, limits.max_seconds);
  if (!std::isfinite(u.end)) return "";
  if (u.end <= u.start) return fmt::format("the cut ends at {} and starts at {}", u.end, u.start);
  if (std::abs(u.end - u.start - u.seconds) > kRounding)
    return fmt::format("the cut is {:.3f} s, seconds says {}", u.end - u.start, u.seconds);
  return "";
}

std::vector<BadRow> check_rows(const Manifest& manifest, const RowLimits& limits) {
  std::vector<BadRow> bad;
  for (const Utterance& u : manifest.rows)
    if (std::string reason = row_fault(u, limits); !reason.empty())
      bad.push_back({u.index, u.id, std::move(reason)});
  return bad;
}

}  // namespace sft
