// sft-data: manifests checked, counted and made (docs/sft-data.md).
#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "engine/io/file.h"
#include "tools/cli.h"
#include "train/corpus.h"
#include "train/data_check.h"
#include "train/metrics.h"
#include "train/stm.h"

using namespace sft;

namespace {

using Json = nlohmann::json;

struct Selection {
  std::string manifest, split, split_column = "split";
  void add_to(Cli& cli) {
    cli.argument("MANIFEST", manifest, "a manifest, or the name of a corpus");
    cli.option("--split", split, "only these rows");
    cli.option("--split-column", split_column, "the column --split is looked up in");
  }
  Manifest read() const {
    const Manifest all = read_manifest(find_corpus(manifest));
    return split.empty() ? all : all.select(split, split_column);
  }
};

int64_t count_deleted(const Deleted& deleted) {
  int64_t count = 0;
  for (const auto& [character, times] : deleted) count += times;
  return count;
}

// ---- check

struct CheckCommand {
  Selection selection;
  std::string units, normalize = "upper";
  bool headers = false;
  RowLimits limits;

  void parse(Cli& cli) {
    selection.add_to(cli);
    cli.option("--units", units,
               "chars, phones, or a file: every row must have such a target, and time to emit it; "
               "not given: chars where a row has text");
    cli.choice("--normalize", normalize, {"upper", "none"}, "of the text");
    cli.option("--min-seconds", limits.min_seconds, "shortest utterance");
    cli.option("--max-seconds", limits.max_seconds, "longest utterance");
    cli.flag("--headers", headers, "believe the headers of audio files, decode nothing");
    cli.parse();
  }

  DataCheckOptions options(const Manifest& manifest) const {
    DataCheckOptions options{.limits = limits, .decode = !headers};
    options.need_target = !units.empty();
    const std::string name = units.empty() ? "chars" : units;
    if (options.need_target || manifest.has("text")) options.units = Units::named(name);
    options.target = target_text(name, parse_normalise(normalize));
    return options;
  }

  void run(Cli& cli) {
    const Manifest manifest = selection.read();
    Progress progress(cli);
    progress.phase("check", "rows");
    const auto total = static_cast<double>(manifest.rows.size());
    const DataCheck check = check_data(manifest, options(manifest), [&](int64_t done) {
      progress.update(static_cast<double>(done), total);
    });
    progress.finish();
    if (cli.json()) {
      print_json(manifest, check);
    } else {
      print_text(manifest, check);
    }
    if (check.bad > 0)
      fail(Kind::input, "{}: {} of {} rows cannot be used", printable(manifest.name), check.bad,
           manifest.rows.size());
  }

  static double audio_seconds(const DataCheck& check) {
    double samples = 0;
    for (const CheckedRow& row : check.rows) samples += static_cast<double>(row.samples);
    return samples / 16000;
  }

  static void print_text(const Manifest& manifest, const DataCheck& check) {
    for (size_t i = 0; i < check.rows.size(); ++i)
      if (!check.rows[i].fault.empty())
        fmt::print("{}: {}\n", manifest.where(manifest.rows[i]), check.rows[i].fault);
    fmt::print("rows {}\nbad {}\nseconds {:.2f}\n", check.rows.size(), check.bad,
               audio_seconds(check));
    fmt::print("deleted characters {}", count_deleted(check.deleted));
    for (const auto& [character, times] : check.deleted)
      fmt::print("  '{}' {}", printable(character), times);
    fmt::print("\n");
  }

  static void print_json(const Manifest& manifest, const DataCheck& check) {
    Json bad = Json::array();
    for (size_t i = 0; i < check.rows.size(); ++i)
      if (!check.rows[i].fault.empty())
        bad.push_back({{"id", manifest.rows[i].id},
                       {"line", manifest.rows[i].line},
                       {"reason", check.rows[i].fault}});
    const Json report = {{"manifest", manifest.name},
                         {"rows", check.rows.size()},
                         {"seconds", audio_seconds(check)},
                         {"deleted", check.deleted},
                         {"bad", bad}};
    fmt::print("{}\n", report.dump(-1, ' ', false, Json::error_handler_t::replace));
  }
};

// ---- stats

struct SplitStats {
  std::vector<double> seconds;
  std::set<std::string> speakers, distinct;
  int64_t words = 0;

  double total() const {
    double sum = 0;
    for (double s : seconds) sum += s;
    return sum;
  }
};

std::map<std::string, SplitStats> split_stats(const Manifest& manifest, const std::string& column) {
  const auto value = [&](const Utterance& row, const std::string& name) {
    return std::string(manifest.has(name) ? manifest.value(row, name) : "");
  };
  std::map<std::string, SplitStats> stats;
  for (const Utterance& row : manifest.rows) {
    SplitStats& s = stats[value(row, column)];
    s.seconds.push_back(row.seconds);
    if (const std::string speaker = value(row, "speaker"); !speaker.empty())
      s.speakers.insert(speaker);
    for (std::string& word : split_words(value(row, "text"))) {
      ++s.words;
      s.distinct.insert(std::move(word));
    }
  }
  for (auto& [name, s] : stats) std::sort(s.seconds.begin(), s.seconds.end());
  return stats;
}

void print_stats(const std::map<std::string, SplitStats>& stats, bool json) {
  Json report = Json::object();
  if (!json)
    fmt::print(
        "split\tutterances\tminutes\tshortest\tmedian\tlongest\tspeakers\twords\tdistinct\n");
  for (const auto& [name, s] : stats) {
    const double median = s.seconds[s.seconds.size() / 2];
    const std::string split = name.empty() ? "-" : name;
    if (json) {
      report[split] = {{"utterances", s.seconds.size()},
                       {"seconds", s.total()},
                       {"shortest", s.seconds.front()},
                       {"median", median},
                       {"longest", s.seconds.back()},
                       {"speakers", s.speakers.size()},
                       {"words", s.words},
                       {"distinct_words", s.distinct.size()}};
    } else {
      fmt::print("{}\t{}\t{:.2f}\t{:.2f}\t{:.2f}\t{:.2f}\t{}\t{}\t{}\n", printable(split),
                 s.seconds.size(), s.total() / 60, s.seconds.front(), median, s.seconds.back(),
                 s.speakers.size(), s.words, s.distinct.size());
    }
  }
  if (json) fmt::print("{}\n", report.dump());
}

void stats(Cli& cli) {
  Selection selection;
  selection.add_to(cli);
  cli.parse();
  const Manifest manifest = selection.read();
  print_stats(split_stats(manifest, selection.split_column), cli.json());
}

// ---- import ted

// Words between `separator`s.
std::vector<std::string> split_at(std::string text, char separator) {
  std::replace(text.begin(), text.end(), separator, ' ');
  return split_words(text);
}

std::vector<std::string> parse_splits(const std::string& text) {
  std::vector<std::string> splits = split_at(text, ',');
  for (const std::string& split : splits)
    if (split != "train" && split != "dev" && split != "test")
      fail(Kind::usage, "--splits: {} (expected train, dev, test)", printable(split));
  if (splits.empty() || std::set(splits.begin(), splits.end()).size() != splits.size())
    fail(Kind::usage, "--splits: {} (expected train, dev, test, each once)", printable(text));
  return splits;
}

void print_import(const TedImport& ted, const std::string& output, bool json) {
  std::map<std::string, std::pair<int64_t, double>> kept;  // utterances, seconds by split
  for (const Utterance& row : ted.manifest.rows) {
    auto& [count, seconds] = kept[std::string(ted.manifest.value(row, "split"))];
    ++count;
    seconds += row.seconds;
  }
  if (json) {
    Json report = {{"manifest", output},
                   {"too_short", ted.too_short},
                   {"too_long", ted.too_long},
                   {"unknown_words", ted.unknown_words},
                   {"ignored", ted.ignored},
                   {"empty", ted.empty},
                   {"deleted_characters", ted.deleted_characters}};
    for (const auto& [split, sums] : kept)
      report["splits"][split] = {{"utterances", sums.first}, {"seconds", sums.second}};
    fmt::print("{}\n", report.dump());
    return;
  }
  for (const auto& [split, sums] : kept)
    fmt::print("{}\t{} utterances\t{:.2f} h\n", split, sums.first, sums.second / 3600);
  fmt::print("left out\t{} too short, {} too long, {} with <unk>, {} not to be scored, {} empty\n",
             ted.too_short, ted.too_long, ted.unknown_words, ted.ignored, ted.empty);
  fmt::print("deleted characters\t{}\n", ted.deleted_characters);
}

void import_ted(Cli& cli) {
  std::string folder, output, splits = "train,dev,test";
  std::optional<std::string> list;
  bool force = false, dry_run = false;
  TedOptions options;
  cli.argument("DIR", folder, "TED-LIUM as distributed: releases 1, 2 or 3");
  cli.option("-o,--output", output, "the manifest to write");
  cli.option("--splits", splits, "which of them");
  cli.option("--hours", options.train_hours,
             "stop the training split after so much audio; 0: all of it");
  cli.option("--subset-list", list, "training ids to take, one a line, in place of --hours");
  cli.flag("--force", force, "replace the manifest if it is there");
  cli.flag("--dry-run", dry_run, "read everything, write nothing");
  cli.parse();
  if (output.empty()) fail(Kind::usage, "missing -o (expected the manifest to write)");
  const Existing existing = force ? Existing::replace : Existing::refuse;
  check_destination(output, existing);
  options.splits = parse_splits(splits);
  if (list) options.train_ids = split_at(read_text(*list, 64 << 20), '\n');

  const TedImport ted = sft::import_ted(folder, options);
  const std::string text = manifest_text(ted.manifest);
  parse_manifest(text, output);  // what is written can be read
  if (!dry_run) write_text(output, text, existing);
  print_import(ted, output, cli.json());
}

}  // namespace

int main(int argc, char** argv) {
  return run_tool(argc, argv, "sft-data", [](Cli& cli) {
    const std::string command = cli.command(
        {{"check", "Read everything a manifest names, and list the rows that cannot be used."},
         {"stats", "Count utterances, audio, speakers and words by split; decodes nothing."},
         {"import ted", "Make a manifest of TED-LIUM."}});
    if (command == "stats") return stats(cli);
    if (command == "import ted") return import_ted(cli);
    CheckCommand check;
    check.parse(cli);
    check.run(cli);
  });
}
