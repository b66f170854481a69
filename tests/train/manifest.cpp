#include "train/manifest.h"

#include <fstream>

#include "tests/doctest.h"
#include "tests/temporary_folder.h"

using namespace sft;

namespace {

const std::string kHeader = "id\tpath\tseconds\ttext\tsplit\n";

std::string message_of(const std::string& text) {
  const Error e = test::error_of([&] { parse_manifest(text, "m.tsv"); });
  EXPECT(e.kind == Kind::input);
  return e.message;
}

}  // namespace

TEST_CASE("manifest: rows, values, paths") {
  const Manifest m = parse_manifest(
      kHeader + "a\tx/a.flac\t1.5\tHELLO\ttrain\nb\t/data/b.flac\t2\t-\tdev\n", "corpus/m.tsv");
  REQUIRE(m.rows.size() == 2);
  EXPECT(m.rows[0].file == "corpus/x/a.flac");
  EXPECT(m.rows[1].file == "/data/b.flac");
  EXPECT(m.rows[1].index == 1);
  EXPECT(m.rows[1].line == 3);
  EXPECT(m.rows[0].seconds == 1.5);
  EXPECT(m.value(m.rows[0], "text") == "HELLO");
  EXPECT(m.value(m.rows[1], "text") == "");
  EXPECT(test::error_of([&] { m.required(m.rows[1], "text"); }).message ==
         "corpus/m.tsv:3: id b has no text");
  const Error e = test::error_of([&] { m.column("txt"); });
  EXPECT(e.message == "corpus/m.tsv: no column txt (it has id, path, seconds, text, split)");
  EXPECT(e.hint == "did you mean text?");
  EXPECT(manifest_text(m) ==
         kHeader + "a\tx/a.flac\t1.5\tHELLO\ttrain\nb\t/data/b.flac\t2\t-\tdev\n");
}

TEST_CASE("manifest: a split keeps the indices of the whole") {
  const Manifest m =
      parse_manifest(kHeader + "a\ta\t1\t-\ttrain\nb\tb\t1\t-\tdev\nc\tc\t1\t-\ttrain\n", "m.tsv");
  const Manifest train = m.select("train");
  REQUIRE(train.rows.size() == 2);
  EXPECT(train.rows[1].index == 2);
  EXPECT(test::error_of([&] { m.select("test"); }).message ==
         "m.tsv: no row has test in column split (there: dev, train)");
  EXPECT(test::error_of([&] { m.select("train", "spilt"); }).hint == "did you mean split?");
}

TEST_CASE("manifest: every broken line is named") {
  EXPECT(message_of("") == "m.tsv:1: is empty (expected a header line)");
  EXPECT(message_of("\xEF\xBB\xBF" + kHeader).find("m.tsv:1: begins with a byte order mark") == 0);
  EXPECT(message_of("id\tpath\n") ==
         "m.tsv:1: has no column seconds (expected a header line with id, path and seconds, "
         "tab-separated)");
  EXPECT(message_of("id\tpath\tseconds\tid\n") == "m.tsv:1: column id is there twice");
  EXPECT(message_of("id\tpath\tseconds\t\n") == "m.tsv:1: column 4 has no name");
  EXPECT(message_of("id\tpath\tseconds\r\n") == "m.tsv:1: ends with CR LF (expected LF alone)");
  EXPECT(message_of("id\tpath\tseconds\tstart\n").find("m.tsv:1: has one of the columns") == 0);
  const auto row = [](const std::string& text) { return message_of(kHeader + text); };
  EXPECT(row("a\ta\t1\t-\n") == "m.tsv:2: has 4 fields (expected 5)");
  EXPECT(row("a\ta\t1\t-\t-\t-\n") == "m.tsv:2: has 6 fields (expected 5)");
  EXPECT(row("a\ta\t1\tx\xff\t-\n") == "m.tsv:2: is not UTF-8: a\\x09a\\x091\\x09x\\xff\\x09-");
  EXPECT(row(std::string("a\ta\t1\t\0\t-\n", 10)) == "m.tsv:2: has a control character, byte 0");
  EXPECT(row("a\ta\t1\t-\t-\n\n") == "m.tsv:3: is an empty line");
  EXPECT(row("a\ta\t1\t-\t-\na\tb\t1\t-\t-\n") == "m.tsv:3: id a is there twice, first in line 2");
  EXPECT(row("a\ta\tlong\t-\t-\n") == "m.tsv:2: seconds is 'long' (expected seconds)");
  EXPECT(row("a\ta\tinf\t-\t-\n") == "m.tsv:2: seconds is 'inf' (expected seconds)");
  EXPECT(row("a\ta\t-1\t-\t-\n") == "m.tsv:2: seconds is '-1' (expected seconds)");
  EXPECT(row("a\t-\t1\t-\t-\n") == "m.tsv:2: id a has no path");
  EXPECT(row("-\ta\t1\t-\t-\n") == "m.tsv:2: has no id");
  EXPECT(row("a b\ta\t1\t-\t-\n") == "m.tsv:2: id a b (expected no spaces and no parentheses)");
}

TEST_CASE("manifest: a file that is not there, and many rows") {
  const Error e = test::error_of([] { read_manifest("no/such.tsv"); });
  EXPECT(e.kind == Kind::input);
  EXPECT(e.message.find("no/such.tsv: ") == 0);
  std::string text = "id\tpath\tseconds\n";
  for (int i = 0; i < 100000; ++i) text += fmt::format("{}\ta.flac\t1\n", i);
  EXPECT(parse_manifest(text, "m.tsv").rows.back().line == 100001);
}

TEST_CASE("manifest: rows that cannot be used") {
  const test::TemporaryFolder folder;
  std::ofstream(folder / "a.flac") << "x";
  const Manifest m = parse_manifest(
      "id\tpath\tseconds\tstart\tend\n"
      "good\ta.flac\t2\t1.0\t3.001\nwhole\ta.flac\t2\t-\t-\nmissing\tb.flac\t2\t-\t-\n"
      "short\ta.flac\t0.02\t-\t-\nlong\ta.flac\t61\t-\t-\nback\ta.flac\t2\t3\t1\n"
      "other\ta.flac\t2\t1\t4\n",
      folder / "m.tsv");
  const std::vector<BadRow> bad = check_rows(m);
  REQUIRE(bad.size() == 5);
  EXPECT(bad[0].id == "missing");
  EXPECT(bad[0].reason == "no such file: " + folder / "b.flac");
  EXPECT(bad[0].index == 2);
  EXPECT(bad[1].reason == "0.02 s (expected at least 0.025)");
  EXPECT(bad[2].reason == "61 s (expected at most 60)");
  EXPECT(bad[3].reason == "the cut ends at 1 and starts at 3");
  EXPECT(bad[4].reason == "the cut is 3.000 s, seconds says 2");
}
