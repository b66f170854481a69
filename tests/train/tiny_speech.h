// A few seconds of made-up speech for tests of training: audio files, a manifest with splits train
// and dev (the same audio), text and a speaker.
#pragma once

#include <fmt/format.h>
#include <sndfile.h>

#include "engine/io/file.h"
#include "tests/golden_signal.h"
#include "tests/temporary_folder.h"
#include "train/finetune.h"

namespace sft::test {

inline void write_wav(const std::string& path, const std::vector<float>& samples,
                      int rate = 16000) {
  SF_INFO info{.samplerate = rate, .channels = 1, .format = SF_FORMAT_WAV | SF_FORMAT_PCM_16};
  SNDFILE* file = sf_open(path.c_str(), SFM_WRITE, &info);
  REQUIRE(file != nullptr);
  sf_write_float(file, samples.data(), static_cast<sf_count_t>(samples.size()));
  sf_close(file);
}

struct TinySpeech {
  TemporaryFolder folder;
  std::string manifest = folder / "speech.tsv", model = golden("models/hubert-group");

  // Lengths of 0.5 s and more, `step` samples apart.
  explicit TinySpeech(int rows = 6, int64_t step = 1700) {
    const char* texts[] = {"a cat", "no", "it's", "dog", "see me", "x"};
    std::string train, dev;
    for (int i = 0; i < rows; ++i) {
      const int64_t samples = 8000 + step * i;
      write_wav(folder / fmt::format("{}.wav", i),
                golden_signal(static_cast<uint32_t>(i + 1), samples));
      const auto row = [&](const char* split) {
        return fmt::format("{}{}\t{}.wav\t{:.5f}\t{}\ts{}\t{}\n", split, i, i,
                           static_cast<double>(samples) / 16000, texts[i % 6], i % 2, split);
      };
      train += row("train");
      if (i < 3) dev += row("dev");
    }
    write_text(manifest, "id\tpath\tseconds\ttext\tspeaker\tsplit\n" + train + dev);
  }

  // A short run into folder / run.
  TrainJob job(const std::string& run, const std::vector<std::string>& settings = {},
               const char* task = "ctc") const {
    ConfigBuilder builder(task);
    builder.set("data.manifest=" + manifest);
    for (const char* setting :
         {"train.steps=10", "batch.utterances=2", "log.every=1", "optim.lr=1e-3", "head.width=8"})
      builder.set(setting);
    builder.set_default("data.label", "speaker", "test");
    if (builder.config().task.kind == "ctc") builder.set("head.kind=linear");
    for (const std::string& setting : settings) builder.set(setting);
    return {.model = model, .config = builder.finish(), .run = folder / run};
  }
};

}  // namespace sft::test
