// What masked prediction learns to tell apart (Hsu et al. 2021, arXiv:2106.07447, section II-C):
// each frame of the encoder is labelled with the k-means cluster of a feature at its time. First
// MFCC, then hidden states of a model that was trained on those.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/context.h"
#include "models/config.h"
#include "train/job.h"
#include "train/loader.h"

namespace sft {

// Features [rows, width] of utterances, one row every hop() samples.
class FeatureSource {
 public:
  using Use = std::function<void(uint32_t row, Tensor features)>;

  virtual ~FeatureSource() = default;
  virtual std::string name() const = 0;
  virtual int64_t width() const = 0;
  virtual int64_t hop() const = 0;                  // samples
  virtual int64_t rows(int64_t samples) const = 0;  // of an utterance
  // Every utterance of a split in order; the features are good during the call.
  virtual void for_each(AudioLoader& loader, const std::vector<int64_t>& samples,
                        const Use& use) = 0;
};

// "mfcc": 39 coefficients at 100 Hz. "hidden:N": state N of `teacher`, a model; Kind::usage if
// `targets` is neither, or the teacher has no such state.
std::unique_ptr<FeatureSource> feature_source(const std::string& targets,
                                              const std::string& teacher);

using Labels = std::vector<std::vector<int32_t>>;  // by row of the split, by frame

struct Targets {
  int64_t clusters = 0, width = 0;
  std::vector<float> centroids;  // [clusters, width]
  Labels train, dev;             // each 0 to clusters - 1
};

struct TargetOptions {
  int64_t clusters = 100;
  uint64_t seed = 0;
  int64_t fit_bytes = int64_t{512} << 20;  // k-means sees at most so many rows
  std::function<void(const std::string&)> say = [](const std::string&) {};
  std::function<void(int64_t done, int64_t total)> progress = [](int64_t, int64_t) {};
};

// Kind::input if the training split has fewer rows than clusters.
void check_rows_for(const FeatureSource& source, const Split& train, int64_t clusters);

// k-means of the training rows (as many as fit, at even distances), then the nearest centroid of
// every frame of both splits: frame t of the encoder has the label of feature row
// t encoder.hop() / source.hop().
Targets make_targets(FeatureSource& source, const Split& train, const Split& dev,
                     const Config& encoder, const TargetOptions& options);

// FOLDER/centroids.safetensors (`centroids`) and FOLDER/labels.safetensors (`train`, `dev`: the
// labels of all utterances end to end), written whole or not at all.
void save_targets(const std::string& folder, const std::string& source, const Targets& targets);
// Kind::input if they are not those of these splits.
Targets load_targets(const std::string& folder, const Split& train, const Split& dev,
                     const Config& encoder);

}  // namespace sft
