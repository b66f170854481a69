// What works on files: decoding audio, and merging models.
#pragma once

#include <string>

#include "bench/report.h"
#include "models/config.h"
#include "train/manifest.h"

namespace sft {

// Every row of the manifest is decoded once a pass, by as many threads as the pool has, in order.
// The first pass, which may find nothing in the page cache, is counted apart.
IoResult bench_io(const Manifest& manifest, int repeats);

// base + 0.25 (tuned - base) of two models with random weights, in a folder of its own that is made
// within `folder` and removed: what is read and written counts, from and to the page cache.
KernelRow bench_merge(const Config& config, const std::string& folder, const std::string& arch,
                      int repeats, uint64_t seed);

}  // namespace sft
