// Supervised fine-tuning: the encoder's last hidden state, a head, a loss. Speech-FT's first stage
// (Lin et al. 2025, arXiv:2502.12672): train/trainer.h holds the encoder fixed for the first
// updates.
#pragma once

#include <memory>
#include <optional>

#include "engine/ops/spec_augment.h"
#include "models/task_head.h"
#include "train/front_end.h"
#include "train/job.h"

namespace sft {

// What training binds: the backbone and the head.
struct FineTuneModel {
  Encoder encoder;
  NamedTaskHead task;

  template <class V>
  void visit(V&& v) {
    encoder.visit(v), task.visit(v);
  }
};

// Where a parameter of fine-tuning trains: 0 the head, 1 the encoder, -1 not at all (what matches
// `freeze`; mask_emb and pretrain.*, which no forward pass of fine-tuning reads).
int finetune_range(std::string_view name, const std::vector<std::string>& freeze);

// What CTC and classification share.
class FineTuneObjective : public Objective {
 public:
  FineTuneObjective(const RunConfig& config, const FineTuneModel& model, const Split& train,
                    const Split& dev, int decode_threads, const FrameBudget& frames);

  const std::vector<int64_t>& samples() const override { return train_.samples(); }
  void prefetch(const Batch& batch) override { train_.prefetch(batch); }
  void forward(Tape& t, const Batch& batch) override;
  void plan_evaluation(Context& ctx) override {
    for_each_dev_batch(ctx, [](const Batch&, Tensor, Segments) {});
  }
  int64_t held_bytes(int64_t batch_samples) const override;
  OnDisk on_disk() const override { return frames_on_disk(train_, dev_); }
  void add_numbers(Context& ctx, Tensor numbers) override;
  std::string names(const Batch& batch) const override;

 protected:
  // Marks the losses of these logits and returns them, one per entry of weights_.
  virtual Var losses(Tape& t, Var logits, const Batch& batch) = 0;
  // Logits of dev utterances, on the host, given in order of length, some at a time.
  void for_each_dev_batch(
      Context& ctx, const std::function<void(const Batch&, Tensor logits, Segments segments)>& use);

  const RunConfig& config_;
  const FineTuneModel& model_;
  const Split& train_split_;
  const Split& dev_split_;
  std::vector<float> weights_;  // of the micro-batch
  size_t update_size_ = 1;      // B of the whole update
  Segments segments_;           // of the micro-batch

 private:
  Var logits(Tape& t, FrontEnd& front_end, const Batch& batch, bool training);

  AudioLoader train_loader_, dev_loader_;
  FrontEnd train_, dev_;
  DropoutRates rates_;
  SpecAugment augment_;
  Tensor losses_;
  Arena host_;  // copies of what a device computed
};

// CTC; dev scores: wer and cer of characters, per of phones, wer of other tokens, and loss.
std::unique_ptr<Objective> ctc_objective(const RunConfig& config, const FineTuneModel& model,
                                         const Units& units, const Split& train, const Split& dev,
                                         int decode_threads, const FrameBudget& frames);

// Classes of utterances; dev scores: accuracy, and loss. classes[i] is the name of class i, the
// value of `data.label`.
std::unique_ptr<Objective> classify_objective(const RunConfig& config, const FineTuneModel& model,
                                              const std::vector<std::string>& classes,
                                              const Split& train, const Split& dev,
                                              int decode_threads, const FrameBudget& frames);

// The values of a column, sorted; Kind::input if a row has none.
std::vector<std::string> classes_of(const Manifest& manifest, std::string_view column);

}  // namespace sft
