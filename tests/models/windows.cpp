#include "models/windows.h"

#include "models/config.h"
#include "tests/doctest.h"

using namespace sft;

// Every frame of the whole is kept once, in order, and lies in its window where it lies in the
// whole, with half of what windows share around it.
TEST_CASE("windows: each frame once, in order, with context on both sides") {
  const Config config = preset("hubert-base");
  for (const int64_t samples : {32'320, 33'000, 160'000, 163'333, 999'999})
    for (const int64_t length : {400, 16'000, 31'999})
      for (const int64_t overlap : {0, 320, 1'000, 8'000}) {
        const int64_t in_window = config.frames(length), shared = (overlap + 160) / 320;
        if (shared >= in_window) {
          const Error e = test::error_of([&] { windows_of(config, samples, length, overlap); });
          EXPECT(e.kind == Kind::usage);
          continue;
        }
        const std::vector<Window> windows = windows_of(config, samples, length, overlap);
        int64_t frame = 0;
        for (size_t i = 0; i < windows.size(); ++i) {
          const Window& w = windows[i];
          EXPECT(w.first_frame == frame);
          EXPECT(config.frames(w.samples) == in_window);
          EXPECT(w.first_sample + w.skip * 320 == 320 * frame);
          EXPECT(w.first_sample + w.samples <= samples);
          EXPECT(w.keep > 0);
          if (i > 0) EXPECT(w.skip >= shared / 2);
          if (i + 1 < windows.size()) EXPECT(in_window - w.skip - w.keep >= shared / 2);
          frame += w.keep;
        }
        EXPECT(frame == config.frames(samples));
      }
}

TEST_CASE("windows: log-mel frames too") {
  const Config config = preset("decoar2");
  const std::vector<Window> windows = windows_of(config, 50'000, 16'000, 3'200);
  EXPECT(windows.size() == 4);
  EXPECT(windows.back().first_frame + windows.back().keep == config.frames(50'000));
  for (const Window& w : windows) EXPECT(config.frames(w.samples) == config.frames(16'000));
  EXPECT(test::error_of([&] { windows_of(config, 50'000, 559, 0); }).kind == Kind::usage);
}
