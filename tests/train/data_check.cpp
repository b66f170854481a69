#include "train/data_check.h"

#include <sndfile.h>

#include "tests/doctest.h"
#include "tests/temporary_folder.h"
#include "train/corpus.h"

using namespace sft;

namespace {

void write_wav(const std::string& path, int samples, int rate) {
  SF_INFO info{.samplerate = rate, .channels = 1, .format = SF_FORMAT_WAV | SF_FORMAT_PCM_16};
  SNDFILE* file = sf_open(path.c_str(), SFM_WRITE, &info);
  REQUIRE(file != nullptr);
  const std::vector<short> wave(static_cast<size_t>(samples), 100);
  sf_writef_short(file, wave.data(), samples);
  sf_close(file);
}

}  // namespace

TEST_CASE("data check: headers tell the samples that decoding gives") {
  const test::TemporaryFolder folder;
  write_wav(folder / "a.wav", 16001, 16000);
  write_wav(folder / "b.wav", 11025, 11025);
  const Manifest m = parse_manifest(
      "id\tpath\tseconds\tstart\tend\n"
      "whole\ta.wav\t1.0001\t-\t-\ncut\ta.wav\t0.5\t0.25\t0.75\nrest\ta.wav\t0.75\t0.25\t-\n"
      "slow\tb.wav\t1\t-\t-\nslowcut\tb.wav\t0.3337\t0.3333\t0.667\nover\ta.wav\t1.01\t0\t1.01\n",
      folder / "m.tsv");
  const DataCheck decoded = check_data(m, {}), believed = check_data(m, {.decode = false});
  EXPECT(decoded.bad == 0);
  EXPECT(decoded.rows[0].samples == 16001);
  EXPECT(decoded.rows[1].samples == 8000);
  for (size_t i = 0; i < m.rows.size(); ++i) {
    INFO(m.rows[i].id);
    EXPECT(decoded.rows[i].fault == "");
    EXPECT(decoded.rows[i].samples == believed.rows[i].samples);
  }
}

TEST_CASE("data check: labels, infeasible targets, dropping") {
  const test::TemporaryFolder folder;
  write_wav(folder / "a.wav", 400 + 320 * 4, 16000);  // 5 frames
  const std::string head = "id\tpath\tseconds\ttext\n";
  Manifest m = parse_manifest(head +
                                  "fits\ta.wav\t0.105\tabab-\ntight\ta.wav\t0.105\taabb!\n"
                                  "none\ta.wav\t0.105\t-\nok\ta.wav\t0.105\ta\n",
                              folder / "m.tsv");
  DataCheckOptions options{.units = Units::chars()};
  DataCheck check = check_data(m, options);
  EXPECT(check.rows[0].labels == Units::chars().encode("ABAB", ""));
  EXPECT(check.rows[1].fault ==
         "target has 4 labels but audio gives 5 frames (needs 6 with repeats)");
  EXPECT(check.rows[2].fault == "has no text");
  EXPECT(check.bad == 2);
  EXPECT(check.deleted == Deleted{{"!", 1}});
  const Error e = test::error_of([&] { drop_bad(m, check, 1); });
  EXPECT(e.kind == Kind::input);
  EXPECT(e.message == m.where(m.rows[1]) + ": " + check.rows[1].fault +
                          " (2 rows cannot be used; at most 1 may be)");
  drop_bad(m, check, 2);
  REQUIRE(m.rows.size() == 2);
  EXPECT(m.rows[1].id == "ok");
  EXPECT(m.rows[1].index == 3);
  EXPECT(check.rows[1].labels.size() == 1);

  options.need_target = false;
  Manifest without = parse_manifest(head + "none\ta.wav\t0.105\t-\n", folder / "m.tsv");
  EXPECT(check_data(without, options).bad == 0);
  Manifest column = parse_manifest("id\tpath\tseconds\na\ta.wav\t0.105\n", folder / "m.tsv");
  EXPECT(test::error_of([&] { check_data(column, {.units = Units::chars()}); }).kind ==
         Kind::input);
}

TEST_CASE("data check: frames") {
  EXPECT(frames_of(399) == 0);
  EXPECT(frames_of(400) == 1);
  EXPECT(frames_of(719) == 1);
  EXPECT(frames_of(720) == 2);
  EXPECT(frames_of(16000) == 49);
}
