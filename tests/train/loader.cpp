#include "train/loader.h"

#include "engine/audio/decode.h"
#include "tests/train/tiny_speech.h"

using namespace sft;

TEST_CASE("loader: rows are decoded ahead, kept within the limit, and read again") {
  const test::TinySpeech speech;
  const Manifest manifest = read_manifest(speech.manifest);
  for (const int64_t keep : {int64_t{0}, int64_t{1} << 30}) {
    AudioLoader loader(manifest, 2, keep);
    std::vector<uint32_t> rows(manifest.rows.size());
    for (size_t i = 0; i < rows.size(); ++i) rows[i] = static_cast<uint32_t>(i);
    for (int pass = 0; pass < 3; ++pass) {
      loader.prefetch(rows);
      loader.prefetch(rows);
      for (uint32_t row : rows) {
        const std::vector<float> expected = load_audio(manifest.rows[row].file);
        const std::span<const float> got = loader.get(row);
        EXPECT(std::equal(got.begin(), got.end(), expected.begin(), expected.end()));
      }
      for (uint32_t row : rows) loader.release(row);
      EXPECT((loader.bytes() == 0) == (keep == 0));
    }
    for (uint32_t row : rows) loader.get(row), loader.release(row, /*keep=*/false);
    EXPECT(loader.bytes() == 0);
  }
}

TEST_CASE("loader: what decoding throws is thrown where the row is asked for") {
  const test::TinySpeech speech;
  const Manifest manifest = read_manifest(speech.manifest);
  write_text(speech.folder / "1.wav", "this is a text\n", Existing::replace);
  AudioLoader loader(manifest, 1, 0);
  const std::vector<uint32_t> rows{0, 1};
  loader.prefetch(rows);
  EXPECT(loader.get(0).size() == 8000);
  const Error e = test::error_of([&] { loader.get(1); });
  EXPECT(e.kind == Kind::input);
  EXPECT(e.message.find("1.wav") != std::string::npos);
}
