// What SpecAugment does to one utterance, on the host and on the device: the draws and the warp
// that engine/ops/spec_augment.h documents.
#pragma once

#include <cmath>
#include <cstdint>

#include "engine/ops/spec_augment.h"
#include "engine/rng.h"

namespace sft {

// Row t of n rows resampled from m: the sum of four weighted rows. Two of them may be the same.
struct ResampleTaps {
  int64_t rows[4];
  float weights[4];
};

// The kernel of Keys 1981 with A = -0.75.
SFT_HOST_DEVICE inline double keys_cubic(double x) {
  constexpr double A = -0.75;
  x = fabs(x);
  if (x <= 1) return ((A + 2) * x - (A + 3)) * x * x + 1;
  return x < 2 ? ((A * x - 5 * A) * x + 8 * A) * x - 4 * A : 0;
}

SFT_HOST_DEVICE inline ResampleTaps resample_taps(int64_t t, int64_t n, int64_t m) {
  const double at = (t + 0.5) * m / n - 0.5, left = floor(at);
  ResampleTaps taps;
  for (int k = 0; k < 4; ++k) {
    const int64_t row = static_cast<int64_t>(left) + k - 1;
    taps.rows[k] = row < 0 ? 0 : row < m ? row : m - 1;
    taps.weights[k] = static_cast<float>(keys_cubic(at - left - (k - 1)));
  }
  return taps;
}

struct SpecMask {
  int32_t begin, end;

  SFT_HOST_DEVICE bool covers(int64_t i) const { return i >= begin && i < end; }
};

// Of one utterance of T frames, C columns; `data` is its row of the plan.
struct SpecPlan {
  SpecAugment options;
  int32_t* data;
  int32_t T, C;

  SFT_HOST_DEVICE static int width(const SpecAugment& o) {
    return 2 + 2 * (o.freq_masks + o.time_masks);
  }

  // Frames [0, centre) become `moved`; T: no warp.
  SFT_HOST_DEVICE int32_t& centre() const { return data[0]; }
  SFT_HOST_DEVICE int32_t& moved() const { return data[1]; }
  SFT_HOST_DEVICE SpecMask* freq() const { return reinterpret_cast<SpecMask*>(data + 2); }
  SFT_HOST_DEVICE SpecMask* time() const { return freq() + options.freq_masks; }

  SFT_HOST_DEVICE bool hidden(int64_t t) const {
    bool any = false;
    for (int i = 0; i < options.time_masks; ++i) any = any || time()[i].covers(t);
    return any;
  }
  SFT_HOST_DEVICE bool hidden_column(int64_t c) const {
    bool any = false;
    for (int i = 0; i < options.freq_masks; ++i) any = any || freq()[i].covers(c);
    return any;
  }
  // Where frame t comes from.
  SFT_HOST_DEVICE ResampleTaps taps(int64_t t) const {
    if (t < moved()) return resample_taps(t, moved(), centre());
    ResampleTaps taps = resample_taps(t - moved(), T - moved(), T - centre());
    for (int64_t& row : taps.rows) row += centre();
    return taps;
  }

  SFT_HOST_DEVICE void draw(Draws draws) const {
    const int32_t window = options.time_warp;
    centre() = moved() = T;
    if (window > 0 && T > 2 * window) {
      centre() = window + static_cast<int32_t>(draws.below(T - 2 * window));
      moved() = centre() - window + 1 + static_cast<int32_t>(draws.below(2 * window));
    }
    draw_masks(freq(), options.freq_masks, options.freq_width, C, draws);
    draw_masks(time(), options.time_masks, options.time_width, T, draws);
  }

 private:
  SFT_HOST_DEVICE static void draw_masks(SpecMask* masks, int count, int width, int32_t size,
                                         Draws& draws) {
    int32_t widest = 0;
    for (int i = 0; i < count; ++i) {
      masks[i].end = static_cast<int32_t>(draws.below(width < size ? width : size));
      widest = masks[i].end > widest ? masks[i].end : widest;
    }
    for (int i = 0; i < count; ++i) {
      const int32_t room = size - widest, end = masks[i].end;
      masks[i].begin = static_cast<int32_t>(draws.below(room > 1 ? room : 1));
      masks[i].end = size < masks[i].begin + end ? size : masks[i].begin + end;
    }
  }
};

}  // namespace sft
