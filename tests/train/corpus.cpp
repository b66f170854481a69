#include "train/corpus.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>

#include "tests/doctest.h"
#include "tests/temporary_folder.h"
#include "train/manifest.h"

using namespace sft;
namespace fs = std::filesystem;

TEST_CASE("corpus: a manifest, a folder, or a name") {
  const test::TemporaryFolder folder;
  const std::string& f = folder.path();
  fs::create_directory(folder / "sid");
  std::ofstream(folder / "ted.tsv") << "x";
  std::ofstream(folder / "sid/sid.tsv") << "x";
  EXPECT(find_corpus("ted", f) == f + "/ted.tsv");
  EXPECT(find_corpus("anything", f + "/ted.tsv") == f + "/ted.tsv");
  EXPECT(find_corpus("mine/my.tsv") == "mine/my.tsv");
  EXPECT(find_task_corpus("sid", f) == f + "/sid/sid.tsv");
  EXPECT(find_task_corpus("sid").ends_with("/digits/digits.tsv"));
  EXPECT(find_task_corpus("er").ends_with("/emotion/emotion.tsv"));

  const Error missing = test::error_of([&] { find_corpus("digits", f); });
  EXPECT(missing.kind == Kind::input);
  EXPECT(missing.message == fmt::format("corpus digits is not there (expected one of {}/digits.tsv,"
                                        " {}/digits/digits.tsv)",
                                        f, f));
  EXPECT(test::error_of([&] { find_corpus("digits", f + "/none"); }).kind == Kind::input);

  setenv("SFT_DATA", f.c_str(), 1);
  EXPECT(find_corpus("ted") == f + "/ted.tsv");
  unsetenv("SFT_DATA");
  EXPECT(test::error_of([] { find_corpus("ted"); }).hint.find("sft-data import ted") !=
         std::string::npos);
  setenv("SFT_CORPORA", f.c_str(), 1);
  EXPECT(find_task_corpus("sid") == f + "/sid/sid.tsv");
  unsetenv("SFT_CORPORA");
}

TEST_CASE("corpus: the built-in sets are whole, and no recording is in two splits") {
  for (const char* name : {"digits", "emotion", "words", "pretrain"}) {
    INFO(name);
    const Manifest m = read_manifest(find_corpus(name));
    EXPECT(check_rows(m).empty());
    if (std::string(name) == "pretrain") continue;
    std::map<std::string, std::string> split_of;  // by file
    for (const Utterance& u : m.rows) {
      const auto [at, fresh] = split_of.emplace(u.file, m.value(u, "split"));
      EXPECT(at->second == m.value(u, "split"));
    }
    for (const char* split : {"train", "dev", "test"}) EXPECT(!m.select(split).rows.empty());
  }
}

TEST_CASE(
    "corpus: pre-training splits files as the tasks do, without those of test; no actor of emotion "
    "is in two splits") {
  std::map<std::string, std::string> pretrain;  // split by file
  const Manifest all = read_manifest(find_corpus("pretrain"));
  for (const Utterance& u : all.rows)
    pretrain.emplace(fs::path(u.file).filename(), all.value(u, "split"));
  std::map<std::string, std::string> split_of;  // by actor
  for (const char* name : {"digits", "emotion"}) {
    const Manifest m = read_manifest(find_corpus(name));
    for (const Utterance& u : m.rows) {
      const auto found = pretrain.find(fs::path(u.file).filename());
      EXPECT((found == pretrain.end() ? "test" : found->second) == m.value(u, "split"));
      if (std::string(name) != "emotion") continue;
      const auto at = split_of.emplace(m.value(u, "speaker"), m.value(u, "split")).first;
      EXPECT(at->second == m.value(u, "split"));
    }
  }
}
