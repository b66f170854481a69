// Training and scoring of one probe on cached hidden states (SUPERB, Yang et al. 2021,
// arXiv:2105.01051): logits = head(sum_l softmax(w)_l h_l), Adam, gradient norm clipped at 1, no
// schedule, no dropout; a new permutation of the utterances every epoch.
//
// Fitting sees training and dev data only: the weights of the best dev evaluation are kept (ties:
// the earlier).
#pragma once

#include <optional>

#include "models/task_head.h"
#include "train/probe_states.h"
#include "train/text.h"

namespace sft {

struct ProbeSet {
  StateCache cache;
  std::vector<std::vector<int32_t>> targets;  // of each utterance: its class, or its CTC labels
};

enum class ProbeMetric { accuracy, per, wer };
std::string_view name(ProbeMetric metric);

struct ProbeSettings {
  Config::Task head;  // kind classify: pooled states; kind ctc: frames
  ProbeMetric metric = ProbeMetric::accuracy;
  std::optional<Units> units;  // CTC
  int64_t steps = 500, batch = 32;

  bool ctc() const { return head.kind == "ctc"; }
};

struct ProbeScore {
  double value = 0;  // of the metric: a fraction
  double loss = 0;   // mean over utterances; CTC: per label
};
bool better(ProbeMetric metric, double a, double b);

struct ProbeFit {
  double lr = 0;
  uint64_t seed = 0;
  ProbeScore dev;              // of the best evaluation,
  int64_t step = 0;            // which came after so many updates,
  std::vector<float> weights;  // with these
  int64_t skipped = 0;         // updates without a finite gradient
  bool diverged = false;       // too many of them in a row: the fit ended there
};

constexpr int64_t kMaxProbeSkips = 100;  // in a row

ProbeFit fit_probe(const ProbeSet& train, const ProbeSet& dev, const ProbeSettings& settings,
                   double lr, uint64_t seed,
                   const std::function<void(int64_t step)>& progress = {});
ProbeScore score_probe(const ProbeSet& set, const ProbeSettings& settings, const ProbeFit& fit);

// softmax(task.layer_weights), one per state; {1} where there is one state.
std::vector<double> layer_shares(const ProbeSet& set, const ProbeSettings& settings,
                                 const ProbeFit& fit);

}  // namespace sft
