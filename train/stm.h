// NIST STM transcripts, and TED-LIUM as distributed made into a manifest
// (Hernandez et al. 2018, arXiv:1805.04699; the selection of Speech-FT, arXiv:2502.12672).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "train/manifest.h"

namespace sft {

// `file channel speaker start end <label> text`; the label may be missing.
struct StmSegment {
  std::string file, channel, speaker, label, text;
  double start = 0, end = 0;  // seconds
  size_t line = 0;            // from 1
};

// Lines that begin with ;; are comments. A last token in parentheses, an artefact of release 1, is
// dropped. Kind::input, beginning with "FILE:LINE:".
std::vector<StmSegment> parse_stm(std::string_view text, const std::string& name);

struct TedOptions {
  std::vector<std::string> splits = {"train", "dev", "test"};
  double min_seconds = 1, max_seconds = 60;  // of a segment
  // Training segments are taken in order (STM files by name, bytewise; then as in the file) until
  // their sum first exceeds this; 0: all.
  double train_hours = 10;
  // In place of train_hours: the ids to take, in this order.
  std::optional<std::vector<std::string>> train_ids;
};

struct TedImport {
  Manifest manifest;  // id path seconds speaker text split start end; text normalised
  int64_t too_short = 0, too_long = 0, unknown_words = 0, ignored = 0, empty = 0;  // left out
  int64_t deleted_characters = 0;  // by the normaliser, in what was kept
};

// The folder has all splits of a release of TED-LIUM.
bool is_ted(const std::string& folder);
// How a release is laid out, for messages.
std::string ted_tree(const std::string& folder);

// `folder`: the corpus, release 3 (data/, legacy/dev/, legacy/test/) or 1 and 2 (train/, dev/,
// test/), each with sph/ and stm/. Kind::input, showing both trees, if it is neither. Ids are
// FILE_START_END in milliseconds; paths are absolute.
TedImport import_ted(const std::string& folder, const TedOptions& options = {});

}  // namespace sft
