// Manifests: lists of utterances (docs/manifests.md, docs/contract.md 4).
//
// UTF-8, tab-separated, one header line. `id`, `path` (relative to the manifest) and `seconds` are
// required; other columns are used by name; `-` means no value. `start` and `end`, in seconds,
// mark a cut of the file. Readers throw Kind::input, beginning with "FILE:LINE:".
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

namespace sft {

struct Utterance {
  std::string id;
  std::string path;    // as written
  std::string file;    // to open: `path`, or the manifest's folder / `path`
  double seconds = 0;  // as written: of the cut, where there is one
  double start = 0;    // seconds into the file
  double end = std::numeric_limits<double>::infinity();  // seconds into the file
  uint32_t index = 0;  // row in the manifest, from 0: the `utterance` of random numbers
  size_t line = 0;     // in the manifest, from 1
  std::vector<std::string> values;  // one per column
};

class Manifest {
 public:
  std::string name;  // the path it was read from, for messages
  std::vector<std::string> columns;
  std::vector<Utterance> rows;

  bool has(std::string_view column) const;
  // Kind::input, with the nearest name, if there is no such column.
  size_t column(std::string_view column) const;
  // The value; empty where it is `-`.
  std::string_view value(const Utterance& row, std::string_view column) const;
  // The same; `-` is an error that names the row.
  std::string_view required(const Utterance& row, std::string_view column) const;
  // "FILE:LINE: id ID", for messages.
  std::string where(const Utterance& row) const;

  // The rows whose `split_column` is `split`, with their indices. None at all is an error that
  // lists the splits there are.
  Manifest select(std::string_view split, std::string_view split_column = "split") const;
};

Manifest read_manifest(const std::string& path);
// `name` stands for the path: in messages, and for the folder of relative paths.
Manifest parse_manifest(std::string_view text, const std::string& name);

// The columns and values of the rows, as read_manifest takes them.
std::string manifest_text(const Manifest& manifest);

struct BadRow {
  uint32_t index;
  std::string id, reason;
};
struct RowLimits {
  double min_seconds = 0.025, max_seconds = 60;
};

// Why a row cannot be used, judged without decoding; empty if it can: the file is not there,
// `seconds` outside the limits, a cut that ends before it starts or is not as long as `seconds`.
std::string row_fault(const Utterance& row, const RowLimits& limits = {});
// All such rows. Nothing is thrown: `data.max_bad` is the caller's.
std::vector<BadRow> check_rows(const Manifest& manifest, const RowLimits& limits = {});

}  // namespace sft
