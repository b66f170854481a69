// Where the rows of a packed matrix draw their dropout bits (engine/rng.h): inside one utterance
// row by row, every row starting on a fresh call. The kernels that draw are in dropout-inl.h.
#pragma once

#include <algorithm>
#include <cstdint>

#include "engine/check.h"
#include "engine/rng.h"
#include "engine/segments.h"

namespace sft::cpu {

// One row: kept iff bits >= threshold, then times scale. threshold 0: just times scale.
struct DropoutRow {
  Rng rng;
  uint32_t call = 0, utterance = 0, site = 0;
  uint32_t threshold = 0;
  float scale = 1;
};

class DropoutRows {
 public:
  // Every element times `factor`.
  explicit DropoutRows(float factor = 1) { row_.scale = factor; }

  // Rows of `width` elements of the whole pack. Does nothing if `dropout` drops nothing; `segments`
  // may be empty then.
  DropoutRows(const Rng& rng, Dropout dropout, const Segments& segments, int64_t width)
      : segments_(segments), calls_(static_cast<uint32_t>((width + 7) / 8)) {
    row_.rng = rng, row_.site = dropout.site;
    row_.threshold = dropout.threshold(), row_.scale = dropout.scale();
  }

  explicit operator bool() const { return row_.threshold != 0; }

  DropoutRow at(int64_t t) const {
    DropoutRow row = row_;
    if (!row.threshold) return row;
    t += first_;
    const auto after = std::upper_bound(segments_.starts.begin(), segments_.starts.end(), t);
    const auto b = after - segments_.starts.begin() - 1;
    row.utterance = static_cast<uint32_t>(segments_.utterances[b]);
    row.call = static_cast<uint32_t>(t - segments_.starts[b]) * calls_;
    return row;
  }

  // The same for a matrix that begins at row `first` of this one.
  DropoutRows from(int64_t first) const {
    DropoutRows rows = *this;
    rows.first_ += first;
    return rows;
  }

 private:
  DropoutRow row_;
  Segments segments_;
  uint32_t calls_ = 0;
  int64_t first_ = 0;
};

// What an op's entry checks: a rate that drops needs the frames of every utterance.
inline void check_dropout(const char* op, Dropout dropout, const Segments& segments, int64_t T) {
  CHECK(dropout.rate >= 0 && dropout.rate < 1, "{}: dropout is {}", op, dropout.rate);
  CHECK(!dropout || segments.total() == T, "{}: {} rows, segments of {}", op, T, segments.total());
}

}  // namespace sft::cpu
