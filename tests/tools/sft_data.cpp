#include <sndfile.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "tests/doctest.h"
#include "tests/run_program.h"
#include "tests/temporary_folder.h"
#include "train/manifest.h"

using namespace sft;
using test::Outcome;
using test::run_program;
namespace fs = std::filesystem;

namespace {

void write_audio(const std::string& path, double seconds, int format) {
  SF_INFO info{.samplerate = 16000, .channels = 1, .format = format | SF_FORMAT_PCM_16};
  SNDFILE* file = sf_open(path.c_str(), SFM_WRITE, &info);
  REQUIRE(file != nullptr);
  const std::vector<short> samples(static_cast<size_t>(seconds * 16000), 100);
  sf_writef_short(file, samples.data(), static_cast<sf_count_t>(samples.size()));
  sf_close(file);
}

}  // namespace

TEST_CASE("sft-data: check accepts the built-in corpora") {
  if (test::absent("sft-data")) return;
  const Outcome o = run_program("sft-data", {"check", "words", "--json"});
  EXPECT(o.code == 0);
  const auto report = nlohmann::json::parse(o.out);
  EXPECT(report.at("rows") == 801);
  EXPECT(report.at("bad").empty());
  EXPECT(report.at("deleted").empty());
  EXPECT(run_program("sft-data", {"check", "digits", "--units", "phones"}).code == 0);
  const Outcome emotion = run_program("sft-data", {"check", "emotion"});
  EXPECT(emotion.code == 0);
  EXPECT(emotion.out.find("rows 147\nbad 0\n") == 0);
}

TEST_CASE("sft-data: check names every bad row, and why") {
  if (test::absent("sft-data")) return;
  const test::TemporaryFolder folder;
  write_audio(folder / "one.wav", 1, SF_FORMAT_WAV);
  std::ofstream(folder / "broken.wav") << "RIFF, it says";
  const std::string manifest = folder / "m.tsv";
  std::ofstream(manifest) << "id\tpath\tseconds\ttext\nfine\tone.wav\t1\tone, two\n"
                             "long\tone.wav\t2\tone\nnone\tnone.wav\t1\tone\n"
                             "broken\tbroken.wav\t1\tone\n"
                             "fast\tone.wav\t1\t"
                          << std::string(60, 'x') << "\n";
  const Outcome o = run_program("sft-data", {"check", manifest});
  EXPECT(o.code == 3);
  const auto says = [&](const std::string& line) { return o.out.find(line) != std::string::npos; };
  EXPECT(says(manifest + ":3: id long: has 1.000 s of audio, seconds says 2\n"));
  EXPECT(says(manifest + ":4: id none: no such file: "));
  EXPECT(says(manifest + ":5: id broken: "));
  EXPECT(says(manifest + ":6: id fast: target has 60 labels but audio gives 49 frames (needs 119 "
                         "with repeats)\n"));
  EXPECT(says("rows 5\nbad 4\n"));
  EXPECT(says("deleted characters 1  ',' 1\n"));
  EXPECT(o.err == fmt::format("sft-data: error: {}: 4 of 5 rows cannot be used\n", manifest));
  EXPECT(run_program("sft-data", {"check", manifest, "--normalize", "none"})
             .out.find("id fine: text: 'o' is not a unit") != std::string::npos);
}

TEST_CASE("sft-data: stats by split") {
  if (test::absent("sft-data")) return;
  const Outcome o = run_program("sft-data", {"stats", "digits"});
  EXPECT(o.code == 0);
  EXPECT(o.out.find("\ntest\t35\t1.55\t") != std::string::npos);
  const auto json =
      nlohmann::json::parse(run_program("sft-data", {"stats", "digits", "--json"}).out);
  EXPECT(json.at("train").at("speakers") == 5);
  EXPECT(json.at("train").at("distinct_words") == 10);
  EXPECT(run_program("sft-data", {"stats", "no-such-corpus"}).code == 3);
  EXPECT(run_program("sft-data", {"chekc", "digits"}).err.find("did you mean check?") !=
         std::string::npos);
  EXPECT(run_program("sft-data", {}).code == 2);
}

TEST_CASE("sft-data: import ted writes a manifest that check accepts") {
  if (test::absent("sft-data")) return;
  const test::TemporaryFolder folder;
  for (const char* split : {"data", "legacy/dev", "legacy/test"}) {
    const fs::path at = fs::path(folder.path()) / split;
    fs::create_directories(at / "sph");
    fs::create_directories(at / "stm");
    const std::string talk = at.filename();
    write_audio(at / "sph" / (talk + ".sph"), 5, SF_FORMAT_NIST);
    std::ofstream(at / "stm" / (talk + ".stm"))
        << talk << " 1 Speaker 0.50 3.00 <NA> it 's a test\n"
        << talk << " 1 Speaker 3.00 5.00 <NA> <unk>\n";
  }
  const std::string manifest = folder / "ted.tsv";
  const std::vector<std::string> import = {"import", "ted", folder.path(), "-o", manifest};
  std::vector<std::string> dry = import;
  dry.push_back("--dry-run");
  EXPECT(run_program("sft-data", dry).code == 0);
  EXPECT(!fs::exists(manifest));

  const Outcome o = run_program("sft-data", import);
  EXPECT(o.code == 0);
  EXPECT(
      o.out.find("train\t1 utterances\t0.00 h\nleft out\t0 too short, 0 too long, 3 with <unk>") !=
      std::string::npos);
  const Manifest m = read_manifest(manifest);
  REQUIRE(m.rows.size() == 3);
  EXPECT(m.value(m.rows[0], "text") == "IT'S A TEST");
  EXPECT(run_program("sft-data", {"check", manifest, "--units", "chars"}).code == 0);
  EXPECT(run_program("sft-data", import).code == 2);  // there already
  const Outcome none =
      run_program("sft-data", {"import", "ted", folder / "no", "-o", manifest, "--force"});
  EXPECT(none.code == 3);
  EXPECT(none.err.find("legacy/dev/   {sph/*.sph, stm/*.stm}   dev") != std::string::npos);
}
