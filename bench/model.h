// A whole model at the workloads of bench/lengths.md, with random weights and audio: extraction of
// all hidden states, one update of fine-tuning, or one of a probe, whose states are kept.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "bench/report.h"
#include "engine/cuda/runtime.h"
#include "models/config.h"

namespace sft {

struct Workload {
  std::string arch = "hubert-base";  // for the id
  std::string task = "extract";      // extract, train-head, train-full, probe:TASK of sft-probe
  std::string mix = "fixed:5";       // bench/mix.h
  int batch = 0;                     // utterances; 0: as bench/lengths.md says
  double batch_seconds = 0;          // in place of it, if above 0: about so much audio
  // linear, blstm; `+cached` behind it: the convolutions' output is kept. Extraction and probes,
  // which have a head of their own: all.
  std::string head;
  uint64_t seed = 0;
  int repeats = 5;
  cuda::Runtime* gpu = nullptr;  // null: on the CPU
  Math math = Math::exact;
  bool launches = false;                  // on a device: every kernel is timed, not each op alone
  std::function<void()> between = [] {};  // before the first timed step, and behind each

  std::string id() const;
};

// Fills in batch and head; Kind::usage for a mix, batch, task or head that is none.
Workload complete(Workload workload);
struct ModelBenchResult {
  ModelResult result;
  std::vector<KernelRow> kernels;        // per step, the slowest first
  std::vector<PhaseTime> phases;         // of one step, in order
  std::vector<LaunchRow> launches = {};  // of one step, the longest first
};

// At most three warm-up steps, fewer if they take more than four seconds; then the timed ones. On a
// device the ops are timed in further steps, which takes a little of their time.
ModelBenchResult bench_model(const Config& config, const Workload& workload,
                             const std::function<void(int64_t done, int64_t total)>& progress);

}  // namespace sft
