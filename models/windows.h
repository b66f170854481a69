// A long utterance in windows of equal length, for memory and time that grow with its length and
// not with its square. Frames lie where they lie in the whole, and each is kept once; what is lost
// is what lies outside of its window: context, and statistics over the whole utterance.
#pragma once

#include <cstdint>
#include <vector>

#include "models/config.h"

namespace sft {

struct Window {
  int64_t first_sample, samples;
  int64_t first_frame;  // of the utterance: the first one that is kept
  int64_t skip, keep;   // frames of the window before those that are kept, and how many these are
};

// Of an utterance of `samples` samples, which is longer than `length`: windows of as many frames as
// `length` samples have, of which neighbours share those of `overlap` samples (the last two more).
// Each keeps its half of them. Kind::usage: a window that is shorter than a frame, or no longer
// than the overlap.
std::vector<Window> windows_of(const Config& config, int64_t samples, int64_t length,
                               int64_t overlap);

}  // namespace sft
