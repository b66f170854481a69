#include "models/windows.h"

#include <algorithm>

#include "engine/check.h"

namespace sft {

std::vector<Window> windows_of(const Config& config, int64_t samples, int64_t length,
                               int64_t overlap) {
  const int64_t frames = config.frames(samples), hop = config.hop();
  const int64_t in_window = config.frames(length), shared = (overlap + hop / 2) / hop;
  if (in_window < 1)
    fail(Kind::usage, "a window of {} samples (expected at least {})", length,
         config.min_samples());
  if (overlap < 0 || shared >= in_window)
    fail(Kind::usage, "windows of {} frames that share {} (expected fewer)", in_window, shared);
  CHECK(frames > in_window, "windows of {} frames for an utterance of {}", in_window, frames);
  std::vector<Window> windows;
  for (int64_t first = 0, kept = 0; kept < frames;) {
    const int64_t next = std::min(first + in_window - shared, frames - in_window);
    const bool last = first + in_window == frames;
    const int64_t end = last ? frames : (next + first + in_window) / 2;
    windows.push_back(
        {first * hop, (in_window - 1) * hop + config.receptive(), kept, kept - first, end - kept});
    first = next, kept = end;
  }
  return windows;
}

}  // namespace sft
