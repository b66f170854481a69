// Which rows of a manifest can be used, and what training needs to know of each: its samples and
// its labels. `data.max_bad` is the caller's: drop_bad counts and decides.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "train/manifest.h"
#include "train/text.h"

namespace sft {

struct DataCheckOptions {
  RowLimits limits;
  bool decode = true;  // false: believe the headers of the audio files
  // With units: every row that has a target is encoded, and must have frames enough for CTC.
  std::optional<Units> units;
  TargetText target = {"text", Normalise::upper};
  bool need_target = true;  // false: rows whose target is `-` are fine
  int hop = 320, receptive = 400;
  int64_t min_samples = 0;  // fewer: the row cannot be used
};

struct CheckedRow {
  int64_t samples = 0;          // at 16 kHz; 0 where the audio cannot be read
  std::vector<int32_t> labels;  // empty without units
  std::string fault;            // why the row cannot be used; empty: it can
};

struct DataCheck {
  std::vector<CheckedRow> rows;  // as in the manifest
  Deleted deleted;               // by the normaliser, in all rows
  int64_t bad = 0;
};

// Rows are read in parallel; `progress` is called with rows done from one thread. Nothing is
// thrown for a bad row.
DataCheck check_data(const Manifest& manifest, const DataCheckOptions& options,
                     const std::function<void(int64_t)>& progress = {});

// The manifest and the check without its bad rows; more than `max_bad` of them: Kind::input, naming
// the first.
void drop_bad(Manifest& manifest, DataCheck& check, int64_t max_bad);

// Frames of an utterance: floor((samples - receptive) / hop) + 1; 0 below `receptive`.
int64_t frames_of(int64_t samples, int hop = 320, int receptive = 400);

}  // namespace sft
