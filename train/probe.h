// The whole job of sft-probe: what a frozen encoder knows, judged by how well a small head reads it
// from its hidden states. The encoder runs once per utterance; every learning rate and seed then
// trains from the cache.
//
// Learning rate and number of updates are chosen on dev data. Test data is scored once a seed, at
// the end, with the head chosen so.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "train/probe_fit.h"
#include "train/run_config.h"

namespace sft {

std::vector<std::string> probe_tasks();  // pr, asr, sid, ks, er
// The defaults of a task; Kind::usage if there is none such.
ConfigBuilder probe_config(const std::string& task);

constexpr double kProbeRates[] = {1e-1, 1e-2, 1e-3, 1e-4, 1e-5};  // of a sweep

struct ProbeJob {
  std::string model, task;
  RunConfig config;           // data.*, head.*, probe.*, run.seed
  std::vector<double> rates;  // one, or those of a sweep
  int64_t memory = 0;         // bytes that caches may take; 0: most of what is free
  std::function<void(const std::string&)> say = [](const std::string&) {};  // lines for people
  std::function<void(const std::string& phase, double done, double total)> progress =
      [](const std::string&, double, double) {};
};

// One learning rate, with every seed.
struct ProbeTrial {
  double lr = 0;
  std::vector<ProbeFit> fits;

  ProbeScore dev() const;  // mean over seeds
  bool diverged() const;   // any of them
};

// progress: updates so far, of all trials. Seeds are `seed`, `seed` + 1, ...
std::vector<ProbeTrial> run_trials(
    const ProbeSet& train, const ProbeSet& dev, const ProbeSettings& settings,
    std::span<const double> rates, uint64_t seed, int64_t seeds,
    const std::function<void(int64_t)>& progress = [](int64_t) {});
// By mean dev score; of equal ones the smaller dev loss. Kind::diverged if all diverged.
size_t best_trial(const std::vector<ProbeTrial>& trials, ProbeMetric metric);

struct ProbeReport {
  std::string task, column;  // of labels or targets
  std::string model_id;
  ProbeMetric metric = ProbeMetric::accuracy;
  std::vector<std::string> outputs;      // classes, or units
  std::vector<int> states;               // that the head reads
  int64_t train = 0, dev = 0, test = 0;  // utterances
  std::optional<double> chance;          // classes: share of the most frequent in test
  int64_t cache_bytes = 0;
  double encode_seconds = 0, fit_seconds = 0;
  std::vector<ProbeTrial> trials;
  size_t chosen = 0;                              // of trials
  std::vector<ProbeScore> tests;                  // of each seed
  std::vector<std::vector<double>> layer_shares;  // of each seed: softmax of the layer weights
};

// Kind::input: no such column, a class that no training row has, one class only, no target.
// Kind::resource: the states do not fit in memory.
ProbeReport probe(const ProbeJob& job);

// Mean, and sample deviation (0 for one value).
struct MeanDeviation {
  double mean = 0, deviation = 0;
};
MeanDeviation mean_deviation(std::span<const double> values);

}  // namespace sft
