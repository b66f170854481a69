// What others need for the same work: the file that bench/baseline/run.py writes.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "bench/report.h"

namespace sft {

struct PeerRow {
  std::string peer, version, config, device, workload, math;  // math: exact or bf16
  std::string ours;       // our arithmetic when they were measured in turn; empty: not written
  double per_second = 0;  // audio-seconds a second, median; 0: of kernels alone
  double paired = 0;      // ours to theirs as they were measured in turn; 0: they were not
  std::vector<std::pair<std::string, double>> kernels;  // name, seconds
};

// All rows but our own. A list of rows, or an object whose `runs` holds such lists. Kind::input: no
// such file.
std::vector<PeerRow> read_peers(const std::string& path);

// Fills in report.peers and the peer's seconds of its kernels, from rows of the same device and
// class; of a model also of the same workload. Returns what is to be said about rows left out.
std::vector<std::string> add_peers(Report& report, const std::vector<PeerRow>& rows);

}  // namespace sft
