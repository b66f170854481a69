// The loop that every kind of training shares: batches, updates, evaluation, checkpoints, resume.
// What a batch computes and how progress is judged is an Objective (train/tasks/).
//
// Update u (0-based; docs/contract.md section 7): the ranges that train, forward and backward of
// its micro-batches, one gradient norm over all that trains, Adam with the clip factor, schedule. A
// loss or norm that is not finite skips the update; the schedule goes on.
//
// A device is never waited for inside of an update: its numbers are read when the next update has
// been issued (results), and before anything is evaluated or saved.
#pragma once

#include <cmath>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "autograd/tape.h"
#include "engine/cuda/runtime.h"
#include "engine/ops/adam.h"
#include "engine/step_memory.h"
#include "models/checkpoint.h"
#include "train/batch_plan.h"
#include "train/run_config.h"
#include "train/run_dir.h"
#include "train/schedule.h"

namespace sft {

struct Scores {
  std::vector<std::pair<std::string, double>> values;  // "wer" 0.123, ...
  double selected = 0;                                 // what the best checkpoint is chosen by
  bool smaller_is_better = true;

  bool better_than(double other) const {
    return smaller_is_better ? selected < other : selected > other;
  }
};

class Objective {
 public:
  virtual ~Objective() = default;
  // Samples of every training utterance; a Batch holds positions in this list.
  virtual const std::vector<int64_t>& samples() const = 0;
  virtual void prefetch(const Batch& batch) = 0;
  // All utterances of the coming update, before its micro-batches: denominators are the update's.
  virtual void begin_update(const Rng& rng, const Batch& all) = 0;
  // Forward of one micro-batch: records it and marks its losses.
  virtual void forward(Tape& t, const Batch& batch) = 0;
  // Names of further numbers in a line of metrics, such as "accuracy"; at most kDetails.
  static constexpr int64_t kDetails = 6;
  virtual std::vector<std::string> details() const { return {}; }
  // Of the last forward, when its backward is done: adds the sum of weights times losses to
  // numbers[0], and the details behind it. numbers: f64 in memory of the context.
  virtual void add_numbers(Context& ctx, Tensor numbers) = 0;
  // Names of these utterances, for the log.
  virtual std::string names(const Batch& batch) const = 0;
  // On the dev split; writes what it decoded into `folder`.
  virtual Scores evaluate(Context& ctx, const std::string& folder) = 0;
  // Takes the memory that evaluate will, in a dry context.
  virtual void plan_evaluation(Context&) {}
  // Bytes that it will hold beside the arenas: kept frames, decoded audio.
  virtual int64_t held_bytes(int64_t batch_samples) const {
    return 2 * batch_samples * static_cast<int64_t>(sizeof(float));
  }
  struct OnDisk {
    int64_t bytes = 0;   // when all is there
    std::string failed;  // why it will not be
  };
  virtual OnDisk on_disk() const { return {}; }
};

struct TrainerReport {
  int64_t step = 0;
  double best = 0;
  int64_t best_step = -1;
  int64_t skipped = 0;
  // The plan of memory, and what it came to; 0 where a device computes.
  int64_t planned_bytes = 0, peak_bytes = 0;
};

// What state.safetensors of a checkpoint says of its run.
TrainerReport read_report(const std::string& checkpoint);

// Counters, in order of the progress line: step, loss, norm, rate, phase.
using OnProgress = std::function<void(int64_t step, double loss, const std::string& fields)>;

class Trainer {
 public:
  // ranges: store.ranges()[0] is the head; the others train from update `head_only` on.
  // pass_through: tensors of the base that no forward pass uses, kept in checkpoints.
  // batches, if any: these in turn, in place of the plan's.
  Trainer(const RunConfig& config, const Config& model, ParamStore& store, TensorMap pass_through,
          Objective& objective, RunDir& run, std::vector<Batch> batches = {});

  // What a run will need at most; printed before it. Bytes.
  struct MemoryPlan {
    int64_t process = 0;     // the program, libraries, the model file, lists of the data
    int64_t parameters = 0;  // masters, gradients, moments, derived weights
    int64_t activations = 0, scratch = 0;
    int64_t data = 0;          // kept frames, decoded audio
    int64_t micro_frames = 0;  // frames of a micro-batch at most; 0: batches are not cut
    bool on_device = false;    // parameters, activations and scratch are
    int64_t total() const { return process + parameters + activations + scratch + data; }
    // Of what `available` counts: on a device, what lies there; else all but what is there already.
    int64_t needed() const { return parameters + activations + scratch + (on_device ? 0 : data); }
  };
  // Cuts batches until they fit `available` bytes; Kind::resource, with the length of utterances
  // that would fit, if they still do not. Touches nothing of the run.
  MemoryPlan plan_memory(int64_t available);

  // Takes up the newest checkpoint; false: there is none.
  bool resume(const std::function<void(const std::string&)>& say);
  // To the end; throws Kind::stopped after a signal (state saved), Kind::diverged after
  // train.max_skips skipped updates in a row.
  TrainerReport run(const OnProgress& progress);

 private:
  // Of an update, as a device writes them.
  struct Numbers {
    double norm = 0, loss = 0;
    double details[Objective::kDetails] = {};

    bool skipped() const { return !std::isfinite(norm) || !std::isfinite(loss); }
  };
  struct Issued {
    int64_t update;
    cuda::Late numbers;
  };
  struct Step {
    Context ctx;
    Tape tape{ctx};
  };
  std::unique_ptr<Step> make_step(bool dry);
  Step& step();
  const std::vector<Batch>& groups() const { return batches_.empty() ? plan_.groups() : batches_; }
  size_t group_of(int64_t u, int64_t k) const;
  void cut(int64_t micro_frames);
  void measure(MemoryPlan& plan);
  void dry_step(Step& dry, const Batch& all, const Batch& piece);
  double longest_that_fits(int64_t bytes);
  void prefetch(int64_t u);
  std::string names(int64_t u) const;
  int64_t head_steps() const {
    return head_only_steps(config_.train.steps, config_.train.head_only);
  }
  bool trains(int64_t u, size_t range) const { return range == 0 || u >= head_steps(); }
  void activate(int64_t u);
  AdamRule rule(int64_t u) const;
  Issued issue(int64_t u);
  void results(size_t but_last, const OnProgress& progress);
  void result(int64_t u, const Numbers& numbers, const OnProgress& progress);
  void evaluate(int64_t step);
  void save(int64_t step);
  void log_step(int64_t u, const Numbers& numbers);
  void log_skip(int64_t u, const Numbers& numbers);
  void show(int64_t u, const Numbers& numbers, const OnProgress& progress);
  int64_t evaluation_interval() const;

  const RunConfig& config_;
  const Config& model_;
  ParamStore& store_;
  TensorMap pass_through_;
  Objective& objective_;
  RunDir& run_;
  BatchPlan plan_;
  std::vector<Batch> batches_;
  Schedule schedule_;
  StepMemory memory_;
  Arena small_;
  Tensor numbers_;  // a Numbers
  std::vector<std::string> details_;
  std::unique_ptr<Step> real_;   // where updates are computed; made for the first one
  std::vector<int64_t> frames_;  // of every training utterance
  int64_t micro_frames_ = 0;
  std::vector<std::vector<Batch>> pieces_;  // micro-batches of every group
  Batch all_;                               // utterances of the update
  std::string fields_;                      // of the progress line
  std::vector<Issued> issued_;              // updates whose numbers have not been read
  int64_t step_ = 0;                        // updates done, their numbers read
  int64_t skips_in_row_ = 0;
  TrainerReport report_;
  double seconds_ = 0;  // in updates
  double since_ = 0;    // when the last stretch of them began
};

// Asks running trainers to stop after the current update: SIGTERM, SIGINT, SIGUSR1 call it.
void install_stop_signals();

}  // namespace sft
