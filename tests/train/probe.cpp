#include "train/probe.h"

#include <algorithm>
#include <cmath>

#include "engine/audio/decode.h"
#include "engine/cuda/emulator/lost_device.h"
#include "engine/io/file.h"
#include "models/checkpoint.h"
#include "models/extract.h"
#include "models/initialise.h"
#include "models/pack.h"
#include "tests/doctest.h"
#include "tests/op_spec.h"
#include "tests/temporary_folder.h"
#include "train/corpus.h"

using namespace sft;

namespace {

// `count` utterances of one row in three states; state 1 tells the class where `informative`.
ProbeSet pooled_set(int count, int classes, bool informative, uint32_t site) {
  Draws draws(7, 0, 0, site);
  ProbeSet set{.cache = {.width = 8}};
  set.cache.states.resize(3);
  for (int i = 0; i < count; ++i) {
    const auto label = static_cast<int32_t>(draws.below(static_cast<uint32_t>(classes)));
    set.targets.push_back({label});
    set.cache.starts.push_back(i + 1);
    for (int s = 0; s < 3; ++s)
      for (int c = 0; c < 8; ++c)
        set.cache.states[s].push_back(
            static_cast<float>(draws.normal() + (informative && s == 1 && c == label ? 12 : 0)));
  }
  return set;
}

ProbeSettings class_settings(int classes, int64_t steps) {
  ProbeSettings settings{.head = {.kind = "classify", .head = "mean", .width = 16}, .steps = steps};
  for (int i = 0; i < classes; ++i) settings.head.units.push_back(std::to_string(i));
  return settings;
}

// Frames that say their label outright: three rows a label, one blank row behind them.
ProbeSet frame_set(int count, uint32_t site) {
  Draws draws(3, 0, 0, site);
  ProbeSet set{.cache = {.width = 4, .states = {{}}}};
  for (int i = 0; i < count; ++i) {
    std::vector<int32_t>& target = set.targets.emplace_back();
    for (uint32_t n = 1 + draws.below(4), k = 0; k < n; ++k) {
      target.push_back(1 + static_cast<int32_t>(draws.below(3)));
      for (int32_t unit : {target.back(), target.back(), target.back(), 0})
        for (int32_t c = 0; c < 4; ++c) set.cache.states[0].push_back(c == unit ? 3.0f : 0.0f);
    }
    set.cache.starts.push_back(set.cache.starts.back() + 4 * static_cast<int64_t>(target.size()));
  }
  return set;
}

// The first rows of each split of a built-in corpus, with paths that work from anywhere.
std::string small_manifest(const test::TemporaryFolder& folder, const std::string& corpus,
                           std::map<std::string, int> counts) {
  Manifest all = read_manifest(find_corpus(corpus, corpora_folder()));
  const size_t path = all.column("path");
  std::vector<Utterance> rows;
  for (Utterance& row : all.rows) {
    if (counts[std::string(all.value(row, "split"))]-- <= 0) continue;
    row.values[path] = row.path = row.file;
    rows.push_back(row);
  }
  all.rows = rows;
  const std::string name = folder / "small.tsv";
  write_text(name, manifest_text(all), Existing::replace);
  return name;
}

std::string random_model(const test::TemporaryFolder& folder) {
  const Config config = preset("hubert-tiny");
  TensorMap tensors;
  initialise_missing(tensors, backbone_tensors(config), 1);
  save_model(folder / "tiny.gguf", "gguf", config, tensors, Existing::replace);
  return folder / "tiny.gguf";
}

ProbeJob small_job(const std::string& model, const std::string& task, const std::string& manifest,
                   const std::string& steps) {
  ConfigBuilder builder = probe_config(task);
  builder.set("data.manifest", manifest, "test");
  builder.set("probe.steps", steps, "test");
  builder.set("probe.seeds", "2", "test");
  return {.model = model, .task = task, .config = builder.finish(), .rates = {1e-3}};
}

// A copy of the manifest in which `change` was made to the text.
std::string changed(const std::string& manifest, const std::string& from, const std::string& to) {
  std::string text = read_text(manifest);
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
  write_text(manifest, text, Existing::replace);
  return manifest;
}

}  // namespace

TEST_CASE("probe: classes that one state separates are learned, and its weight grows") {
  const ProbeSet train = pooled_set(200, 4, true, 1), dev = pooled_set(50, 4, true, 2),
                 other = pooled_set(100, 4, true, 3);
  const ProbeSettings settings = class_settings(4, 300);
  const ProbeFit fit = fit_probe(train, dev, settings, 1e-2, 0);
  EXPECT(fit.dev.value == 1.0);
  EXPECT(score_probe(other, settings, fit).value == 1.0);
  const std::vector<double> shares = layer_shares(train, settings, fit);
  EXPECT(shares[1] > std::max(shares[0], shares[2]));
  EXPECT(std::abs(shares[0] + shares[1] + shares[2] - 1) < 1e-12);
}

TEST_CASE("probe: labels without a cause are found by chance only") {
  const ProbeSet train = pooled_set(200, 4, false, 1), dev = pooled_set(100, 4, false, 2),
                 other = pooled_set(400, 4, false, 3);
  const ProbeSettings settings = class_settings(4, 100);
  const double score = score_probe(other, settings, fit_probe(train, dev, settings, 1e-2, 0)).value;
  EXPECT(std::abs(score - 0.25) < 4 * std::sqrt(0.25 * 0.75 / 400));  // four deviations
}

TEST_CASE("probe: CTC on frames that say their label") {
  const ProbeSet train = frame_set(40, 1), dev = frame_set(10, 2), other = frame_set(20, 3);
  for (const char* head : {"linear", "projector"}) {
    INFO(head);
    ProbeSettings settings{.head = {.kind = "ctc", .head = head, .width = 16},
                           .metric = ProbeMetric::per,
                           .units = Units::from_symbols({"<pad>", "AA", "B", "K"}),
                           .steps = 200,
                           .batch = 8};
    settings.head.units = settings.units->symbols();
    const ProbeFit fit = fit_probe(train, dev, settings, 3e-2, 0);
    EXPECT(fit.dev.value == 0.0);
    EXPECT(score_probe(other, settings, fit).value == 0.0);
    EXPECT(layer_shares(train, settings, fit) == std::vector<double>{1});
  }
}

TEST_CASE("probe: the same seed gives the same bits, another seed another head") {
  const ProbeSet train = pooled_set(60, 3, true, 1), dev = pooled_set(20, 3, false, 2);
  const ProbeSettings settings = class_settings(3, 40);
  const ProbeFit a = fit_probe(train, dev, settings, 1e-3, 5),
                 b = fit_probe(train, dev, settings, 1e-3, 5),
                 c = fit_probe(train, dev, settings, 1e-3, 6);
  EXPECT(a.weights == b.weights);
  EXPECT(a.dev.loss == b.dev.loss);
  EXPECT(a.weights != c.weights);
}

TEST_CASE("probe: the best evaluation is kept, of equal ones the earlier") {
  const ProbeSet train = pooled_set(60, 3, true, 1), dev = pooled_set(30, 3, true, 2);
  const ProbeFit fit = fit_probe(train, dev, class_settings(3, 1000), 1e-1, 0);
  EXPECT(fit.dev.value == 1.0);
  EXPECT(fit.step == 100);  // perfect from the first evaluation on
}

TEST_CASE("probe: updates without a finite gradient are skipped, and end the fit") {
  ProbeSet train = pooled_set(40, 3, true, 1);
  const ProbeSet dev = pooled_set(20, 3, true, 2);
  train.cache.states[0][0] = std::numeric_limits<float>::quiet_NaN();
  const ProbeSettings settings = class_settings(3, 500);  // a batch is most of the set
  const ProbeFit some = fit_probe(train, dev, settings, 1e-2, 0);
  EXPECT(some.skipped > 0);
  EXPECT(!some.diverged);
  EXPECT(std::all_of(some.weights.begin(), some.weights.end(),
                     [](float w) { return std::isfinite(w); }));
  std::fill(train.cache.states[0].begin(), train.cache.states[0].end(), NAN);
  const std::vector<double> rates{1e-2};
  const std::vector<ProbeTrial> trials = run_trials(train, dev, settings, rates, 0, 1);
  EXPECT(trials[0].fits[0].skipped == kMaxProbeSkips);
  EXPECT(test::error_of([&] { best_trial(trials, settings.metric); }).kind == Kind::diverged);
}

TEST_CASE("probe: the rate is chosen by mean dev score, then dev loss") {
  const auto trial = [](double lr, std::vector<ProbeScore> devs, bool diverged = false) {
    ProbeTrial t{.lr = lr};
    for (const ProbeScore& dev : devs) t.fits.push_back({.dev = dev, .diverged = diverged});
    return t;
  };
  const std::vector<ProbeTrial> trials{
      trial(1e-1, {{1.0, 0.1}, {1.0, 0.1}}, true), trial(1e-2, {{0.9, 0.5}, {0.7, 0.5}}),
      trial(1e-3, {{0.8, 0.3}, {0.8, 0.3}}), trial(1e-4, {{0.6, 0.1}, {0.9, 0.1}})};
  EXPECT(best_trial(trials, ProbeMetric::accuracy) == 2);
  EXPECT(best_trial(trials, ProbeMetric::per) == 3);
  const MeanDeviation m = mean_deviation(std::vector<double>{1, 2, 6});
  EXPECT(m.mean == doctest::Approx(3));
  EXPECT(m.deviation == doctest::Approx(std::sqrt(7.0)));
  EXPECT(mean_deviation(std::vector<double>{4}).deviation == 0);
}

TEST_CASE("probe: lists of states") {
  const auto layers = [](int64_t count) {
    Config config;
    config.layers = count;
    return config;
  };
  EXPECT(parse_states("all", layers(2)) == std::vector<int>{0, 1, 2});
  EXPECT(parse_states("last", layers(12)) == std::vector<int>{12});
  EXPECT(parse_states("12,0,6,0", layers(12)) == std::vector<int>{0, 6, 12});
  for (const char* wrong : {"", "13", "-1", "1,", "one", "0 1", "99999999999"}) {
    INFO(wrong);
    EXPECT(test::error_of([&] { parse_states(wrong, layers(12)); }).kind == Kind::usage);
  }
}

TEST_CASE("probe: cached states are those of the encoder on each utterance alone") {
  const test::TemporaryFolder folder;
  const Manifest manifest = read_manifest(small_manifest(folder, "words", {{"train", 7}}));
  const Config config = preset("hubert-tiny");
  TensorMap tensors;
  initialise_missing(tensors, backbone_tensors(config), 1);
  Encoder encoder(config);
  ParamStore store;
  store.bind(param_requests(encoder), tensors, "random");
  std::vector<std::vector<float>> audio;
  std::vector<int64_t> samples;
  for (const Utterance& u : manifest.rows) {
    audio.push_back(load_audio(u.file, AudioRange{u.start, u.end}));
    samples.push_back(static_cast<int64_t>(audio.back().size()));
  }
  StateOptions options{.states = {0, 2, 4}, .pooled = false, .pack_frames = 80};
  const StateCache frames = compute_states(encoder, store, manifest, samples, options);
  options.pooled = true;
  const StateCache pooled = compute_states(encoder, store, manifest, samples, options);
  EXPECT(cache_bytes(config, samples, options) ==
         static_cast<int64_t>(3 * pooled.states[0].size() * sizeof(float)));
  EXPECT(pooled.utterances() == manifest.rows.size());

  Arena acts, scratch;
  Context ctx{.acts = acts, .scratch = scratch, .prepared = store.prepared()};
  for (size_t i = 0; i < audio.size(); ++i) {
    Tape tape(ctx, false);
    WavePack pack;
    pack.assign(config, std::vector<int32_t>{static_cast<int32_t>(samples[i])},
                std::vector<int32_t>{0});
    const Tensor wave = pack.wave(ctx);
    pack.place(ctx, wave, 0, audio[i]);
    const HiddenStates hidden =
        encoder.encode(tape, encoder.features(tape, wave, pack), pack.frames(), {.keep_all = true});
    REQUIRE(frames.length(i) == config.frames(samples[i]));
    for (size_t s = 0; s < options.states.size(); ++s) {
      const Tensor alone = hidden.states[options.states[s]];
      const float* cached = frames.states[s].data() + frames.starts[i] * config.width;
      double error = 0, norm = 0, mean_error = 0;
      for (int64_t c = 0; c < config.width; ++c) {
        double mean = 0;
        for (int64_t t = 0; t < alone.rows(); ++t) {
          const double x = alone.row(t)[c], d = x - cached[t * config.width + c];
          error += d * d, norm += x * x;
          mean += x / static_cast<double>(alone.rows());
        }
        const float* row = pooled.states[s].data() + static_cast<int64_t>(i) * config.width;
        mean_error = std::max(mean_error, std::abs(mean - row[c]));
      }
      // a GEMM may choose another algorithm for another number of rows: rounding only
      EXPECT(std::sqrt(error / norm) < 1e-5);
      EXPECT(mean_error < 1e-5 * std::sqrt(norm / static_cast<double>(alone.count())) + 1e-5);
    }
  }
}

TEST_CASE("probe: states on a device with little memory") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  using cuda::emulator::free_bytes_are;
  if (!free_bytes_are) return test::skip("needs the emulator");
  const test::TemporaryFolder folder;
  const Manifest manifest = read_manifest(small_manifest(folder, "words", {{"train", 5}}));
  const Config config = preset("hubert-tiny");
  TensorMap tensors;
  initialise_missing(tensors, backbone_tensors(config), 1);
  Encoder encoder(config);
  ParamStore store(&shared_gpu());
  store.bind(param_requests(encoder), tensors, "random");
  std::vector<int64_t> samples;
  for (const Utterance& u : manifest.rows)
    samples.push_back(static_cast<int64_t>(load_audio(u.file, AudioRange{u.start, u.end}).size()));
  const auto states = [&](int64_t free) {
    free_bytes_are(free);
    return compute_states(encoder, store, manifest, samples, {.states = {0, 4}, .pooled = true});
  };
  const StateCache whole = states(-1);
  bool cut = false;
  std::string said;
  for (int64_t free = int64_t{64} << 20; said.find("any utterance") == std::string::npos;
       free = free * 3 / 4) {
    const Error e = test::error_of([&] {
      const StateCache some = states(free);
      cut = true;
      for (size_t i = 0; i < whole.states[1].size(); ++i)
        EXPECT(std::abs(some.states[1][i] - whole.states[1][i]) < 1e-4);
      fail(Kind::internal, "it fits");
    });
    if (e.kind == Kind::internal) continue;
    EXPECT(e.kind == Kind::resource);
    EXPECT(e.message.find("MiB of device memory, ") != std::string::npos);
    said += e.message + "\n";
  }
  free_bytes_are(-1);
  EXPECT(cut);
  EXPECT(said.find(": enough for ") != std::string::npos);
}

TEST_CASE("probe: a random encoder on the built-in corpus; test data decides nothing") {
  const test::TemporaryFolder folder;
  const std::string model = random_model(folder);
  const std::string manifest =
      small_manifest(folder, "words", {{"train", 60}, {"dev", 12}, {"test", 12}});
  ProbeJob job = small_job(model, "ks", manifest, "40");
  job.rates = {1e-2, 1e-3};
  const ProbeReport report = probe(job);
  EXPECT(report.metric == ProbeMetric::accuracy);
  EXPECT(report.column == "label");
  EXPECT(report.train == 60);
  EXPECT(report.trials.size() == 2);
  EXPECT(report.tests.size() == 2);
  EXPECT(report.layer_shares[1].size() == 5);
  EXPECT(*report.chance >= 1.0 / static_cast<double>(report.outputs.size()));

  // other answers of the test split: the same heads
  std::string text = read_text(manifest);
  Manifest other = parse_manifest(text, manifest);
  const size_t label = other.column("label");
  for (Utterance& row : other.rows)
    if (other.value(row, "split") == "test") row.values[label] = report.outputs[0];
  write_text(manifest, manifest_text(other), Existing::replace);
  const ProbeReport again = probe(job);
  EXPECT(again.chosen == report.chosen);
  EXPECT(*again.chance == 1.0);
  for (size_t t = 0; t < 2; ++t)
    for (size_t s = 0; s < 2; ++s)
      EXPECT(again.trials[t].fits[s].weights == report.trials[t].fits[s].weights);
}

TEST_CASE("probe: phones and words with a fresh CTC head") {
  const test::TemporaryFolder folder;
  const std::string model = random_model(folder);
  const std::string manifest =
      small_manifest(folder, "digits", {{"train", 4}, {"dev", 2}, {"test", 2}});
  for (const char* task : {"pr", "asr"}) {
    INFO(task);
    const ProbeReport report = probe(small_job(model, task, manifest, "3"));
    EXPECT(!report.chance);
    EXPECT(report.column == (std::string(task) == "pr" ? "phones" : "text"));
    EXPECT(std::isfinite(report.tests[0].value));
    EXPECT(report.tests[0].loss > 0);
  }
}

TEST_CASE("probe: what is wrong with data, states and memory is said") {
  const test::TemporaryFolder folder;
  const std::string model = random_model(folder);
  const std::map<std::string, int> few{{"train", 60}, {"dev", 2}, {"test", 2}};
  const auto error = [&](const std::string& task, const std::string& manifest,
                         const std::string& set = "data.max_bad=0", int64_t memory = 0) {
    ConfigBuilder builder = probe_config(task);
    builder.set("data.manifest", manifest, "test");
    builder.set(set);
    return test::error_of([&] {
      probe({.model = model,
             .task = task,
             .config = builder.finish(),
             .rates = {1e-3},
             .memory = memory});
    });
  };
  const auto says = [](const Error& e, Kind kind, std::string_view part) {
    INFO(e.message);
    EXPECT(e.kind == kind);
    EXPECT(e.message.find(part) != std::string::npos);
  };
  const std::string m = small_manifest(folder, "words", few);
  says(error("er", m), Kind::input, "emotion");
  says(error("sid", m), Kind::input, "column speaker has one value in the training split, george");
  says(error("ks", changed(m, "\tdev\t", "\tother\t")), Kind::input, "dev");
  small_manifest(folder, "words", few);
  Manifest odd = read_manifest(m);
  odd.rows.back().values[odd.column("label")] = "eleven";
  write_text(m, manifest_text(odd), Existing::replace);
  says(error("ks", m), Kind::input, "label is eleven, which no training row is");
  odd.rows.back().values[odd.column("label")] = "-";
  write_text(m, manifest_text(odd), Existing::replace);
  says(error("ks", m), Kind::input, "has no label");
  small_manifest(folder, "words", {{"train", 3}, {"dev", 2}, {"test", 2}});
  says(error("pr", m, "probe.states=all", 1000), Kind::resource, "MiB may be used");
  says(error("pr", m, "probe.states=7"), Kind::usage,
       "'7' (expected all, last, or numbers from 0 to 4)");
  says(error("pr", m, "head.kind=mean"), Kind::usage, "the heads of CTC");
  says(error("pr", changed(m, "phones", "sounds")), Kind::input, "phones");
  EXPECT(test::error_of([] { probe_config("asv"); }).kind == Kind::usage);
}
