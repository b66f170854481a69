// What the objectives of masked pre-training share: the audio and frames of the splits, which
// frames an update hides, denominators over the whole update, batches of the dev split.
#pragma once

#include <functional>

#include "models/encoder.h"
#include "train/front_end.h"
#include "train/job.h"

namespace sft {

// What is hidden in a batch, and how much each loss counts. Views: good until the next batch of the
// split.
struct HiddenFrames {
  Segments segments;
  std::span<const int32_t> masked;         // [M] frames of the pack, ascending
  std::span<const float> weights;          // [M] 1 / masked frames of the whole update
  std::span<const float> penalty_weights;  // [B] penalty times the utterance's share of those
};

// One split.
class MaskedSplit {
 public:
  // An utterance of which fewer than `least` frames would be hidden has none hidden.
  MaskedSplit(const RunConfig& config, const Encoder& encoder, const Split& split, size_t least,
              const FrameBudget& frames);

  FrontEnd& front_end() { return front_end_; }
  const FrontEnd& front_end() const { return front_end_; }
  const Split& split() const { return split_; }
  uint32_t utterance(uint32_t row) const { return split_.manifest.rows[row].index; }

  // Frames of one utterance that update `update` hides; kLargest: as many as any could.
  static constexpr uint32_t kLargest = ~0u;
  std::vector<int32_t> mask(uint32_t row, uint32_t update) const;
  // Of these rows, end to end; n: masked frames of the whole update. each: its frames, from 0.
  using Each = std::function<void(uint32_t row, std::span<const int32_t> frames)>;
  HiddenFrames hide(const Batch& rows, uint32_t update, int64_t n, const Each& each);

 private:
  std::vector<int32_t> largest_mask(int32_t frames) const;
  std::vector<int32_t> drawn_mask(uint32_t row, uint32_t update) const;

  const RunConfig& config_;
  const Split& split_;
  size_t least_;
  std::vector<int32_t> frames_;  // of every row
  AudioLoader loader_;
  FrontEnd front_end_;
  std::vector<int32_t> masked_;
  std::vector<float> weights_, penalty_weights_;
};

// The arguments outlive it.
class MaskedObjective : public Objective {
 public:
  MaskedObjective(const RunConfig& config, const Encoder& encoder, const Split& train,
                  const Split& dev, size_t least, const FrameBudget& frames);

  const std::vector<int64_t>& samples() const override { return train_.front_end().samples(); }
  void prefetch(const Batch& batch) override { train_.front_end().prefetch(batch); }
  void begin_update(const Rng& rng, const Batch& all) override;
  void forward(Tape& t, const Batch& batch) override;
  std::string names(const Batch& batch) const override;
  void plan_evaluation(Context& ctx) override;
  int64_t held_bytes(int64_t batch_samples) const override;
  OnDisk on_disk() const override { return frames_on_disk(train_.front_end(), dev_.front_end()); }

 protected:
  // Forward of a micro-batch of the training split to the losses of the tape, with the frames
  // hidden that `update` hides.
  virtual void train_losses(Tape& t, Var features, const Batch& rows, uint32_t update) = 0;
  // Of a batch of the dev split, with those of update 0.
  virtual void dev_losses(Tape& t, Var features, const Batch& rows) = 0;
  // dev_losses of every batch, each followed by use(). Nothing is recorded, and what was computed
  // is gone afterwards.
  void for_each_dev_batch(Context& ctx, const std::function<void()>& use);
  // values: "loss", "accuracy" and what else there is; writes them into FOLDER/scores.json.
  Scores scored(std::vector<std::pair<std::string, double>> values,
                const std::string& folder) const;

  const RunConfig& config_;
  MaskedSplit train_, dev_;
  EncodeOptions options_;      // of training
  int64_t update_masked_ = 0;  // frames that the update hides
  Arena host_;                 // copies of what a device computed

 private:
  std::vector<Batch> dev_batches_;
};

// Sum of weights times losses.
double sum_of_losses(std::span<const float> weights, Tensor losses);

}  // namespace sft
