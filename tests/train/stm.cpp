#include "train/stm.h"

#include <sndfile.h>

#include <filesystem>
#include <fstream>

#include "tests/doctest.h"
#include "tests/temporary_folder.h"
#include "train/corpus.h"

using namespace sft;
namespace fs = std::filesystem;

namespace {

void write_sph(const fs::path& path, double seconds) {
  SF_INFO info{.samplerate = 16000, .channels = 1, .format = SF_FORMAT_NIST | SF_FORMAT_PCM_16};
  SNDFILE* file = sf_open(path.c_str(), SFM_WRITE, &info);
  REQUIRE(file != nullptr);
  const std::vector<short> samples(static_cast<size_t>(seconds * 16000), 1);
  sf_writef_short(file, samples.data(), static_cast<sf_count_t>(samples.size()));
  sf_close(file);
}

// A talk: its audio, and its transcript.
void write_talk(const fs::path& split, const std::string& name, const std::string& stm) {
  fs::create_directories(split / "sph");
  fs::create_directories(split / "stm");
  write_sph(split / "sph" / (name + ".sph"), 20);
  std::ofstream(split / "stm" / (name + ".stm")) << stm;
}

struct Corpus {
  test::TemporaryFolder own;
  fs::path folder = own.path();
  Corpus() {
    write_talk(folder / "data", "Bob_2010",
               "Bob_2010 1 Bob 0.00 4.00 <NA> we 're at 1-2 well-known places\n"
               "Bob_2010 1 Bob 4.00 4.90 <NA> short\n"
               "Bob_2010 1 Bob 5.00 9.00 <NA> that <unk> word\n"
               "Bob_2010 1 Bob 9.00 12.00 <NA> second\n");
    write_talk(folder / "data", "AliceB_2009",
               "AliceB_2009 1 Alice 1.50 5.25 <o,f0,female> hello there (AliceB_2009-1)\n");
    write_talk(folder / "legacy/dev", "Carol",
               ";; a comment\nCarol 1 Carol 0.0 3.0 <NA> dev talk\n"
               "Carol 1 inter_segment_gap 3.0 6.0 <NA> ignore_time_segment_in_scoring\n");
    write_talk(folder / "legacy/test", "Dan", "Dan 1 Dan 0.0 3.0 <NA> test talk\n");
  }
};

}  // namespace

TEST_CASE("stm: --ctc ted finds the corpus as distributed, and imports it once") {
  const Corpus corpus;
  const std::string folder = corpus.folder.string();
  EXPECT(is_ted(folder));
  EXPECT(!is_ted(folder + "/data"));
  const std::string manifest = find_corpus("ted", folder);
  EXPECT(manifest == folder + "/ted.tsv");
  const size_t rows = read_manifest(manifest).rows.size();
  EXPECT(rows == import_ted(folder).manifest.rows.size());
  std::ofstream(folder + "/data/stm/Bob_2010.stm") << "";
  EXPECT(find_corpus("ted", folder) == manifest);
  EXPECT(read_manifest(manifest).rows.size() == rows);
  const Error absent = test::error_of([&] { find_corpus("ted", folder + "/legacy"); });
  EXPECT(absent.kind == Kind::input);
  EXPECT(absent.message.find("legacy/dev/   {sph/*.sph, stm/*.stm}   dev") != std::string::npos);
}

TEST_CASE("stm: lines") {
  const std::vector<StmSegment> s = parse_stm(
      ";; head\ntalk A spk 1.5 2.25 <o,f0,male> so  it goes (2)\ntalk A spk 3 4 no label\n",
      "t.stm");
  REQUIRE(s.size() == 2);
  EXPECT(s[0].label == "<o,f0,male>");
  EXPECT(s[0].text == "so  it goes");
  EXPECT(s[0].end == 2.25);
  EXPECT(s[1].text == "no label");
  EXPECT(s[1].line == 3);
  const auto message = [](const std::string& text) {
    return test::error_of([&] { parse_stm(text, "t.stm"); }).message;
  };
  EXPECT(message("talk A spk x 2 <NA> a\n").find("t.stm:1: 'x' is no time") == 0);
  EXPECT(message("talk A spk 3 2 <NA> a\n") == "t.stm:1: ends at 2, starts at 3");
  EXPECT(message("\n talk A\n").find("t.stm:2: '' is no time") == 0);
  EXPECT(message("talk A spk 1 2 <NA> \xff\n").find("t.stm:1: is not text") == 0);
}

TEST_CASE("stm: TED-LIUM 3 becomes a manifest") {
  const Corpus corpus;
  const TedImport ted = import_ted(corpus.folder, {.train_hours = 0});
  const Manifest m = parse_manifest(manifest_text(ted.manifest), "ted.tsv");
  std::vector<std::string> ids;
  for (const Utterance& u : m.rows) ids.push_back(u.id);
  EXPECT(ids == std::vector<std::string>{"AliceB_2009_0001500_0005250", "Bob_2010_0000000_0004000",
                                         "Bob_2010_0009000_0012000", "Carol_0000000_0003000",
                                         "Dan_0000000_0003000"});
  EXPECT(m.value(m.rows[0], "text") == "HELLO THERE");
  EXPECT(m.value(m.rows[1], "text") == "WE'RE AT WELL KNOWN PLACES");
  EXPECT(m.rows[0].start == 1.5);
  EXPECT(m.rows[0].end == 5.25);
  EXPECT(m.value(m.rows[0], "speaker") == "Alice");
  EXPECT(m.select("dev").rows.size() == 1);
  EXPECT(check_rows(m).empty());
  EXPECT(ted.too_short == 1);
  EXPECT(ted.unknown_words == 1);
  EXPECT(ted.ignored == 1);
  EXPECT(ted.deleted_characters == 2);
}

TEST_CASE("stm: the training subset stops after its hours are exceeded, or is a list") {
  const Corpus corpus;
  TedOptions options{.splits = {"train"}, .train_hours = 3.0 / 3600};  // 3 s: the first has 3.75
  EXPECT(import_ted(corpus.folder, options).manifest.rows.size() == 1);
  options.train_hours = 3.75 / 3600;  // reached, not exceeded
  EXPECT(import_ted(corpus.folder, options).manifest.rows.size() == 2);
  options.train_ids = {"Bob_2010_0009000_0012000"};
  EXPECT(import_ted(corpus.folder, options).manifest.rows[0].id == "Bob_2010_0009000_0012000");
  options.train_ids = {"Bob_2010_0004000_0004900"};  // too short
  EXPECT(test::error_of([&] { import_ted(corpus.folder, options); }).message ==
         "subset list: Bob_2010_0004000_0004900 is no usable training segment");
}

TEST_CASE("stm: the tree of releases 1 and 2, and no tree at all") {
  const Corpus corpus;
  fs::rename(corpus.folder / "data", corpus.folder / "train");
  fs::rename(corpus.folder / "legacy/dev", corpus.folder / "dev");
  const Error e = test::error_of([&] { import_ted(corpus.folder); });
  EXPECT(e.kind == Kind::input);
  EXPECT(e.message.find("no split test of TED-LIUM here") != std::string::npos);
  EXPECT(e.message.find("legacy/dev/") != std::string::npos);
  EXPECT(import_ted(corpus.folder, {.splits = {"dev", "train"}}).manifest.rows.size() == 4);
  fs::remove(corpus.folder / "dev/sph/Carol.sph");
  EXPECT(test::error_of([&] {
           import_ted(corpus.folder, {.splits = {"dev"}});
         }).message.find("Carol.stm:2: no audio ") != std::string::npos);
  EXPECT(test::error_of([] { import_ted("/no/such/place"); }).kind == Kind::input);
}
