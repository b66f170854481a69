#include "train/pretrain/targets.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <numeric>

#include "engine/audio/features.h"
#include "engine/formats/safetensors.h"
#include "engine/io/directory.h"
#include "engine/ops/nearest.h"
#include "models/checkpoint.h"
#include "models/encoder.h"
#include "train/kmeans.h"

namespace sft {
namespace {

class MfccSource : public FeatureSource {
 public:
  std::string name() const override { return "mfcc"; }
  int64_t width() const override { return 39; }
  int64_t hop() const override { return 160; }
  int64_t rows(int64_t samples) const override { return frames_at_100hz(samples); }
  void for_each(AudioLoader& loader, const std::vector<int64_t>& samples, const Use& use) override {
    for (uint32_t row = 0; row < samples.size(); ++row) {
      const uint32_t ahead = row + 4 * kDecodeThreads;
      if (ahead < samples.size()) loader.prefetch({&ahead, 1});
      std::vector<float> x = mfcc_(loader.get(row));
      loader.release(row);
      use(row, Tensor(x.data(), {static_cast<int64_t>(x.size()) / width(), width()}));
    }
  }

 private:
  Mfcc39 mfcc_;
};

// Several utterances make one forward pass.
class HiddenSource : public FeatureSource {
 public:
  HiddenSource(const std::string& path, int64_t state)
      : path_(path), state_(state), file_(open_model(path)), encoder_(file_.config) {
    const int64_t last = file_.config.states() - 1;
    if (state < 0 || state > last)
      fail(Kind::usage, "pretrain.targets: hidden:{}: {} has states 0 to {}", state, path, last);
    check_finite(file_);
    store_.bind(param_requests(encoder_), file_.tensors, path);
  }

  std::string name() const override { return fmt::format("hidden:{} of {}", state_, path_); }
  int64_t width() const override { return file_.config.width; }
  int64_t hop() const override { return file_.config.hop(); }
  int64_t rows(int64_t samples) const override { return file_.config.frames(samples); }

  void for_each(AudioLoader& loader, const std::vector<int64_t>& samples, const Use& use) override {
    std::vector<uint32_t> pack;
    int64_t packed = 0;
    for (uint32_t row = 0; row < samples.size(); ++row) {
      if (packed + samples[row] > kPackSamples && !pack.empty()) {
        encode(loader, pack, samples, use);
        pack.clear(), packed = 0;
      }
      pack.push_back(row), packed += samples[row];
    }
    encode(loader, pack, samples, use);
  }

 private:
  static constexpr int64_t kPackSamples = 30 * 16000;

  void encode(AudioLoader& loader, const std::vector<uint32_t>& rows,
              const std::vector<int64_t>& samples, const Use& use) {
    std::vector<int32_t> lengths, utterances;
    for (uint32_t row : rows) {
      lengths.push_back(static_cast<int32_t>(samples[row]));
      utterances.push_back(static_cast<int32_t>(row));
    }
    loader.prefetch(rows);
    acts_.rewind(), scratch_.rewind();
    Context ctx{.acts = acts_, .scratch = scratch_, .prepared = store_.prepared()};
    Tape tape(ctx, /*recording=*/false);
    pack_.assign(file_.config, lengths, utterances);
    const Tensor wave = pack_.wave(ctx);
    for (size_t b = 0; b < rows.size(); ++b) {
      pack_.place(ctx, wave, static_cast<int>(b), loader.get(rows[b]));
      loader.release(rows[b]);
    }
    const Var frames = encoder_.features(tape, wave, pack_);
    const Segments segments = pack_.frames();
    const HiddenStates states =
        encoder_.encode(tape, frames, segments, {.keep = uint64_t{1} << state_});
    const Tensor state = states.states[state_];
    for (size_t b = 0; b < rows.size(); ++b)
      use(rows[b], state.slice(segments.starts[b], segments.length(static_cast<int>(b))));
  }

  std::string path_;
  int64_t state_;
  ModelFile file_;
  Encoder encoder_;
  ParamStore store_;
  Arena acts_, scratch_;
  WavePack pack_;
};

int64_t total_rows(const FeatureSource& source, const Split& split) {
  int64_t total = 0;
  for (int64_t samples : split.samples()) total += source.rows(samples);
  return total;
}

// At most `fit` of the `total` feature rows of a split, at even distances.
std::vector<float> rows_to_fit(FeatureSource& source, AudioLoader& loader, const Split& split,
                               int64_t total, int64_t fit, const TargetOptions& options) {
  std::vector<float> rows;
  rows.reserve(fit * source.width());
  int64_t seen = 0;
  source.for_each(loader, split.samples(), [&](uint32_t row, Tensor x) {
    for (int64_t t = 0; t < x.rows(); ++t, ++seen)
      if ((seen + 1) * fit / total > seen * fit / total)
        rows.insert(rows.end(), x.row(t), x.row(t) + x.width());
    options.progress(row + 1, static_cast<int64_t>(split.manifest.rows.size()));
  });
  return rows;
}

struct Machine {
  Arena acts, scratch;
  Prepared prepared;
  Context ctx{.acts = acts, .scratch = scratch, .prepared = prepared};
};

Labels label(FeatureSource& source, AudioLoader& loader, const Split& split, const Config& encoder,
             Tensor centroids, const TargetOptions& options) {
  const std::vector<int64_t> samples = split.samples();
  Machine machine;
  Labels labels(samples.size());
  source.for_each(loader, samples, [&](uint32_t row, Tensor x) {
    machine.acts.rewind(), machine.scratch.rewind();
    const int32_t* nearest_centroid = nearest(machine.ctx, x, centroids).label.as<int32_t>();
    const int64_t frames = encoder.frames(samples[row]);
    for (int64_t t = 0; t < frames; ++t)
      labels[row].push_back(
          nearest_centroid[std::min(t * encoder.hop() / source.hop(), x.rows() - 1)]);
    options.progress(row + 1, static_cast<int64_t>(samples.size()));
  });
  return labels;
}

std::vector<int32_t> joined(const Labels& labels) {
  std::vector<int32_t> all;
  for (const auto& row : labels) all.insert(all.end(), row.begin(), row.end());
  return all;
}

Labels read_labels(const TensorFile& file, const std::string& name, const Split& split,
                   const Config& encoder, int64_t clusters) {
  const TensorInfo& info = file.at(name);
  int64_t frames = 0;
  for (int64_t samples : split.samples()) frames += encoder.frames(samples);
  if (info.dtype != Dtype::i32 || info.shape != Shape{frames})
    fail(Kind::input, "{}: {} is {} (expected the labels of {} frames)", file.path(), name,
         info.shape, frames);
  std::vector<int32_t> all(frames);
  file.read(info, std::as_writable_bytes(std::span(all)));
  for (int32_t value : all)
    if (value < 0 || value >= clusters)
      fail(Kind::input, "{}: {} has the label {} (expected 0 to {})", file.path(), name, value,
           clusters - 1);
  Labels labels;
  auto at = all.begin();
  for (int64_t samples : split.samples()) {
    labels.emplace_back(at, at + encoder.frames(samples));
    at += encoder.frames(samples);
  }
  return labels;
}

constexpr const char* kCentroids = "/centroids.safetensors";
constexpr const char* kLabels = "/labels.safetensors";

}  // namespace

std::unique_ptr<FeatureSource> feature_source(const std::string& targets,
                                              const std::string& teacher) {
  if (targets == "mfcc") return std::make_unique<MfccSource>();
  constexpr std::string_view kHidden = "hidden:";
  int64_t state = -1;
  const char* end = targets.data() + targets.size();
  if (!targets.starts_with(kHidden) ||
      std::from_chars(targets.data() + kHidden.size(), end, state).ptr != end || state < 0)
    fail(Kind::usage, "pretrain.targets: {} (expected mfcc, or hidden:N)", printable(targets));
  return std::make_unique<HiddenSource>(teacher, state);
}

void check_rows_for(const FeatureSource& source, const Split& train, int64_t clusters) {
  const int64_t total = total_rows(source, train);
  if (total < clusters)
    fail(Kind::input, "{}: {} rows of {} in all (expected at least one for each of {} clusters)",
         train.manifest.name, total, source.name(), clusters);
}

Targets make_targets(FeatureSource& source, const Split& train, const Split& dev,
                     const Config& encoder, const TargetOptions& options) {
  constexpr int64_t kKeepAudio = int64_t{256} << 20;  // bytes
  check_rows_for(source, train, options.clusters);
  const int64_t total = total_rows(source, train);
  const int64_t fit = std::clamp(options.fit_bytes / 4 / source.width(), options.clusters, total);
  AudioLoader train_loader(train.manifest, kDecodeThreads, kKeepAudio);
  AudioLoader dev_loader(dev.manifest, kDecodeThreads, 0);
  std::vector<float> rows = rows_to_fit(source, train_loader, train, total, fit, options);
  Machine machine;
  Kmeans fitted = kmeans(machine.ctx, Tensor(rows.data(), {fit, source.width()}),
                         {.clusters = options.clusters,
                          .start_rows = std::max<int64_t>(30000, options.clusters),
                          .seed = options.seed});
  options.say(fmt::format(
      "targets: {} clusters of {} of {} rows of {}; mean squared distance {:.4g} after {} "
      "iterations",
      options.clusters, fit, total, source.name(), fitted.inertia.back() / static_cast<double>(fit),
      fitted.inertia.size() - 1));
  Targets targets{options.clusters, source.width(), std::move(fitted.centroids), {}, {}};
  const Tensor centroids(targets.centroids.data(), {targets.clusters, targets.width});
  targets.train = label(source, train_loader, train, encoder, centroids, options);
  targets.dev = label(source, dev_loader, dev, encoder, centroids, options);
  return targets;
}

void save_targets(const std::string& folder, const std::string& source, const Targets& targets) {
  OutputDirectory out(folder, Existing::replace);
  Metadata about(folder);
  about.set("source", source);
  const Shape shape{targets.clusters, targets.width};
  TensorWriter centroids =
      create_safetensors(out.folder() + kCentroids, about, {{"centroids", shape}});
  centroids.write("centroids", Tensor(const_cast<float*>(targets.centroids.data()), shape));
  centroids.finish();
  const std::vector<int32_t> train = joined(targets.train), dev = joined(targets.dev);
  TensorWriter labels =
      create_safetensors(out.folder() + kLabels, about,
                         {{"train", {static_cast<int64_t>(train.size())}, Dtype::i32},
                          {"dev", {static_cast<int64_t>(dev.size())}, Dtype::i32}});
  for (const TensorSpec& spec : labels.tensors())
    labels.append(std::as_bytes(std::span(spec.name == "dev" ? dev : train)));
  labels.finish();
  out.commit();
}

Targets load_targets(const std::string& folder, const Split& train, const Split& dev,
                     const Config& encoder) {
  const TensorFile centroids = open_safetensors(folder + kCentroids);
  const TensorInfo& info = centroids.at("centroids");
  if (info.shape.rank() != 2)
    fail(Kind::input, "{}: centroids are {} (expected [clusters, width])", centroids.path(),
         info.shape);
  Targets targets{info.shape[0], info.shape[1], std::vector<float>(info.shape.count()), {}, {}};
  centroids.read_f32(info, targets.centroids);
  const TensorFile labels = open_safetensors(folder + kLabels);
  targets.train = read_labels(labels, "train", train, encoder, targets.clusters);
  targets.dev = read_labels(labels, "dev", dev, encoder, targets.clusters);
  return targets;
}

}  // namespace sft
