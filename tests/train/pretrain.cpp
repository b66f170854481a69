#include "train/pretrain/pretrain.h"

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/audio/decode.h"
#include "engine/audio/features.h"
#include "engine/io/file.h"
#include "engine/io/hash.h"
#include "models/checkpoint.h"
#include "models/encoder.h"
#include "models/initialise.h"
#include "tests/doctest.h"
#include "tests/golden_signal.h"
#include "tests/temporary_folder.h"
#include "tests/train/tiny_speech.h"
#include "train/corpus.h"
#include "train/pretrain/contrastive.h"
#include "train/pretrain/targets.h"

using namespace sft;
namespace fs = std::filesystem;

namespace {

Config tiny_config() {
  Config c;
  c.layers = 2, c.width = 32, c.ffn = 64, c.heads = 2;
  c.conv_dims.assign(7, 16);
  c.pos_kernel = 8, c.pos_groups = 2;
  c.normalize = true;
  c.pretrain.dim = 16;
  c.train = {.dropout = 0, .attention_dropout = 0, .input_dropout = 0, .layerdrop = 0};
  return c;
}

Config tiny_wav2vec2() {
  Config c = tiny_config();
  c.arch = "wav2vec2";
  c.train.feature_dropout = 0;
  c.pretrain.vq_groups = 2, c.pretrain.vq_vars = 8;
  return c;
}

// A folder with a model (model.gguf) and a manifest of `rows` utterances of the built-in speech.
struct Setup {
  test::TemporaryFolder folder;
  std::string model = folder / "model.gguf", manifest = folder / "speech.tsv";

  explicit Setup(size_t rows, const Config& config = tiny_config()) {
    TensorMap tensors;
    initialise_missing(tensors, backbone_tensors(config), 1);
    save_model(model, "gguf", config, tensors);
    std::ofstream out(manifest);
    out << "id\tpath\tseconds\n";
    const Manifest all = read_manifest(find_corpus("pretrain")).select("train");
    for (size_t i = 0; i < rows; ++i) {
      const Utterance& row = all.rows[i * all.rows.size() / rows];
      out << row.id << "\t" << fs::absolute(row.file).string() << "\t" << row.seconds << "\n";
    }
  }

  TrainJob job(const std::vector<std::string>& settings = {}) const {
    ConfigBuilder builder("pretrain");
    builder.set("data.manifest=" + manifest);
    for (const char* setting : {"train.steps=10", "pretrain.clusters=8", "batch.seconds=4",
                                "optim.lr=2e-3", "log.every=1", "pretrain.feature_grad_mult=1"})
      builder.set(setting);
    for (const std::string& setting : settings) builder.set(setting);
    return {.model = model, .config = builder.finish(), .run = folder / "run"};
  }
  Split split() const {
    return read_split(job(), read_manifest(manifest), "all", tiny_config(), {});
  }
};

std::vector<std::byte> bytes_of_file(const std::string& path) {
  const InputFile file(path);
  const auto bytes = file.map();
  return {bytes.begin(), bytes.end()};
}

// Squared distance to centroid k.
double distance(const Targets& targets, const float* x, int64_t k) {
  double sum = 0;
  for (int64_t i = 0; i < targets.width; ++i) {
    const double d = static_cast<double>(x[i]) - targets.centroids[k * targets.width + i];
    sum += d * d;
  }
  return sum;
}

std::vector<nlohmann::json> metrics(const std::string& run) {
  std::ifstream file(run + "/metrics.jsonl");
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(file, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

}  // namespace

TEST_CASE("pretrain: the target of frame t is the cluster of MFCC row 2t") {
  const Setup setup(6);
  const Split split = setup.split();
  const auto source = feature_source("mfcc", "");
  const Targets targets = make_targets(*source, split, split, tiny_config(),
                                       {.clusters = 8, .fit_bytes = 300 * 4 * 39});
  REQUIRE(targets.train.size() == 6);
  EXPECT(targets.train == targets.dev);
  const Mfcc39 mfcc;
  for (size_t row = 0; row < 6; ++row) {
    const std::vector<float> x = mfcc(load_audio(split.manifest.rows[row].file));
    const std::vector<int32_t>& labels = targets.train[row];
    REQUIRE(static_cast<int64_t>(labels.size()) == frames_of(split.check.rows[row].samples));
    for (size_t t = 0; t < labels.size(); ++t)
      for (int64_t k = 0; k < 8; ++k)
        REQUIRE(distance(targets, &x[2 * t * 39], labels[t]) <=
                distance(targets, &x[2 * t * 39], k) * (1 + 1e-5));
  }
  const Targets again = make_targets(*source, split, split, tiny_config(),
                                     {.clusters = 8, .fit_bytes = 300 * 4 * 39});
  EXPECT(again.centroids == targets.centroids);
  EXPECT(again.train == targets.train);
}

TEST_CASE("pretrain: targets are kept whole, and only for the data they were made of") {
  const Setup setup(4);
  const Split split = setup.split();
  const Targets made =
      make_targets(*feature_source("mfcc", ""), split, split, tiny_config(), {.clusters = 5});
  const std::string folder = setup.folder / "targets";
  save_targets(folder, "mfcc", made);
  const Targets kept = load_targets(folder, split, split, tiny_config());
  EXPECT(kept.centroids == made.centroids);
  EXPECT(kept.train == made.train);
  EXPECT(kept.dev == made.dev);
  Split fewer = split;
  fewer.manifest.rows.pop_back(), fewer.check.rows.pop_back();
  const Error e = test::error_of([&] { load_targets(folder, fewer, split, tiny_config()); });
  EXPECT(e.kind == Kind::input);
  EXPECT(e.message.find("labels.safetensors: train is") != std::string::npos);
}

TEST_CASE("pretrain: hidden:N are the teacher's states, each utterance as if alone") {
  const Setup setup(5);
  const Split split = setup.split();
  const ModelFile file = open_model(setup.model);
  Encoder encoder(file.config);
  ParamStore store;
  store.bind(param_requests(encoder), file.tensors, setup.model);
  Arena acts, scratch;
  Context ctx{.acts = acts, .scratch = scratch, .prepared = store.prepared()};
  for (const int state : {0, 1, 2}) {
    const auto source = feature_source(fmt::format("hidden:{}", state), setup.model);
    AudioLoader loader(split.manifest, 1, 0);
    uint32_t next = 0;
    source->for_each(loader, split.samples(), [&](uint32_t row, Tensor x) {
      REQUIRE(row == next++);
      const std::vector<float> samples = load_audio(split.manifest.rows[row].file);
      const auto length = static_cast<int32_t>(samples.size());
      const int32_t utterance = 0;
      WavePack pack;
      pack.assign(file.config, {&length, 1}, {&utterance, 1});
      acts.rewind();
      Tape tape(ctx, false);
      const Tensor wave = pack.wave(ctx);
      pack.place(ctx, wave, 0, samples);
      const Var frames = encoder.features(tape, wave, pack);
      const Tensor alone =
          encoder.encode(tape, frames, pack.frames(), {.keep_all = true}).states[state];
      REQUIRE(alone.shape == x.shape);
      EXPECT(test::relative_error(x.f32(), alone.f32(), alone.count()) < 1e-5);
    });
    EXPECT(next == 5);
  }
}

TEST_CASE("pretrain: the loss falls, and hidden frames are told apart better than by chance") {
  const Setup setup(12);
  TrainJob job = setup.job({"train.steps=150", "optim.lr=5e-3", "pretrain.mask_length=3"});
  std::string said;
  job.say = [&](const std::string& line) { said += line + "\n"; };
  const TrainerReport report = pretrain(job);
  EXPECT(said.find("no split dev: evaluations use 12 rows of the training split\n") !=
         std::string::npos);
  EXPECT(report.step == 150);
  EXPECT(report.skipped == 0);
  double first = 0, last = 0, accuracy = 0;
  for (const auto& line : metrics(job.run))
    if (line.contains("dev.loss")) {
      last = line.at("dev.loss"), accuracy = line.at("dev.accuracy");
      if (first == 0) first = last;
    }
  // Eight clusters: ln 8 = 2.08 nats and 1/8 by chance; the run ends near 1.63 and 0.37.
  EXPECT_MESSAGE(last < std::min(first, 1.9), fmt::format("loss {} -> {}", first, last));
  EXPECT_MESSAGE(accuracy > 0.25, fmt::format("accuracy {}", accuracy));
  const ModelFile best = open_model(job.run);
  EXPECT(best.tensors.find("pretrain.label_emb").shape == Shape{12, 16});
  EXPECT(best.tensors.find("pretrain.proj.weight").shape == Shape{16, 32});
  const ModelFile base = open_model(setup.model);
  EXPECT(best.config.provenance.string("sft.base.id") == model_id(base.tensors));
  for (const char* name : {"conv.0.weight", "mask_emb", "enc.1.ffn.up.weight"}) {
    const Tensor before = base.tensors.find(name), after = best.tensors.find(name);
    EXPECT(test::relative_error(after.f32(), before.f32(), before.count()) > 1e-4);
  }
}

TEST_CASE("pretrain: a resumed run keeps its targets and ends with the same bytes") {
  const Setup setup(6);
  TrainJob job = setup.job({"model.dropout=0.1", "model.layerdrop=0.3"});
  job.run = setup.folder / "whole";
  pretrain(job);
  const std::string whole = job.run + "/ckpt/step-00000010/model.gguf";

  job.run = setup.folder / "stopped";
  job.progress = [](int64_t step, double, const std::string&) {
    if (step == 5) throw std::runtime_error("killed");
  };
  DOCTEST_CHECK_THROWS_AS(pretrain(job), std::runtime_error);
  const std::string labels = job.run + "/targets/labels.safetensors";
  const auto written = fs::last_write_time(labels);
  job.progress = [](int64_t, double, const std::string&) {};
  job.resume = true;
  EXPECT(pretrain(job).step == 10);
  EXPECT(fs::last_write_time(labels) == written);
  EXPECT(bytes_of_file(job.run + "/ckpt/step-00000010/model.gguf") == bytes_of_file(whole));
  EXPECT(bytes_of_file(labels) == bytes_of_file(setup.folder / "whole/targets/labels.safetensors"));
}

TEST_CASE("pretrain: what cannot be done is said before a run is made") {
  const Setup setup(3);
  const auto fails = [&](const std::vector<std::string>& settings, Kind kind,
                         const std::string& what) {
    const Error e = test::error_of([&] { pretrain(setup.job(settings)); });
    EXPECT(e.kind == kind);
    EXPECT_MESSAGE(e.message.find(what) != std::string::npos, e.message);
    EXPECT(!fs::exists(setup.folder / "run"));
  };
  fails({"pretrain.targets=fbank"}, Kind::usage, "fbank (expected mfcc, or hidden:N)");
  fails({"pretrain.targets=hidden:"}, Kind::usage, "expected mfcc, or hidden:N");
  fails({"pretrain.targets=hidden:-1"}, Kind::usage, "expected mfcc, or hidden:N");
  fails({"pretrain.targets=hidden:3"}, Kind::usage, "has states 0 to 2");
  fails({"pretrain.targets=hidden:1", "pretrain.teacher=nowhere.gguf"}, Kind::input,
        "nowhere.gguf");
  fails({"pretrain.clusters=100000"}, Kind::input, "rows of mfcc in all");
  fails({"pretrain.temperature=0"}, Kind::usage, "pretrain.temperature");
  fails({"eval.select=wer"}, Kind::usage, "eval.select");
}

TEST_CASE("contrastive: negatives are the other masked frames of the utterance, each as often") {
  constexpr int32_t kFrames = 5, kEach = 4000;
  Draws draws(3, 17, 2, fnv1a("negatives"));
  std::vector<int32_t> rows;
  draw_negatives(draws, kFrames, kEach, 100, rows);
  REQUIRE(rows.size() == size_t{kFrames} * kEach);
  int counts[kFrames][kFrames] = {};
  for (int32_t i = 0; i < kFrames * kEach; ++i) {
    REQUIRE((rows[i] >= 100 && rows[i] < 100 + kFrames));
    ++counts[i / kEach][rows[i] - 100];
  }
  for (int m = 0; m < kFrames; ++m)
    for (int r = 0; r < kFrames; ++r)  // five standard deviations of a share of 1/4
      EXPECT(std::abs(counts[m][r] - (m == r ? 0 : kEach / 4)) < (m == r ? 1 : 138));
  std::vector<int32_t> again;
  Draws same(3, 17, 2, fnv1a("negatives"));
  draw_negatives(same, kFrames, kEach, 0, again);
  for (size_t i = 0; i < rows.size(); ++i) REQUIRE(again[i] + 100 == rows[i]);
}

namespace {

std::vector<std::string> contrastive_settings(const std::vector<std::string>& more) {
  std::vector<std::string> settings{"pretrain.objective=wav2vec2", "pretrain.mask_prob=0.65",
                                    "pretrain.negatives=20"};
  settings.insert(settings.end(), more.begin(), more.end());
  return settings;
}

}  // namespace

TEST_CASE("contrastive: hidden frames are told apart better than by chance, by many codes") {
  const Setup setup(12, tiny_wav2vec2());
  const TrainJob job =
      setup.job(contrastive_settings({"train.steps=150", "optim.lr=5e-3", "pretrain.mask_length=3",
                                      "pretrain.gumbel_decay=0.99"}));
  const TrainerReport report = pretrain(job);
  EXPECT(report.step == 150);
  EXPECT(report.skipped == 0);
  nlohmann::json dev, update;
  for (const auto& line : metrics(job.run)) (line.contains("dev.loss") ? dev : update) = line;
  const double accuracy = dev.at("dev.accuracy"), chance = dev.at("dev.chance");
  // The run ends near 0.29, five times chance, and a perplexity of 11.
  EXPECT_MESSAGE(accuracy > 3 * chance, fmt::format("accuracy {}, chance {}", accuracy, chance));
  const double perplexity = dev.at("dev.code_perplexity");
  EXPECT_MESSAGE(perplexity > 6, fmt::format("code perplexity {} of 16", perplexity));
  for (const char* name : {"accuracy", "contrastive", "diversity", "penalty", "perplexity"})
    EXPECT(update.at(name).get<double>() > 0);
  EXPECT(update.at("temperature").get<double>() == doctest::Approx(0.5));
  EXPECT(update.at("loss").get<double>() ==
         doctest::Approx(update.at("contrastive").get<double>() +
                         update.at("diversity").get<double>() + update.at("penalty").get<double>())
             .epsilon(1e-4));

  const ModelFile best = open_model(job.run);
  EXPECT(best.tensors.find("pretrain.vq.codebook").shape == Shape{16, 8});
  EXPECT(best.tensors.find("pretrain.vq_out.weight").shape == Shape{16, 16});
  const std::string folder = setup.folder / "huggingface";
  save_model(folder, "hf", best.config, best.tensors);
  const ModelFile exported = open_model(folder);
  EXPECT(model_id(exported.tensors) == model_id(best.tensors));
  for (const char* name : {"pretrain.proj.weight", "pretrain.vq.codebook", "pretrain.vq.proj.bias"})
    EXPECT(exported.tensors.find(name).shape == best.tensors.find(name).shape);

  // Another run goes on with its quantiser.
  TrainJob next = setup.job(contrastive_settings({"train.steps=1", "optim.lr=0"}));
  next.model = job.run, next.run = setup.folder / "next";
  pretrain(next);
  const ModelFile same = open_model(next.run);
  const Tensor before = best.tensors.find("pretrain.vq.codebook"),
               after = same.tensors.find("pretrain.vq.codebook");
  EXPECT(test::relative_error(after.f32(), before.f32(), before.count()) == 0);
}

TEST_CASE("contrastive: a resumed run ends with the same bytes") {
  const Setup setup(6, tiny_wav2vec2());
  TrainJob job = setup.job(contrastive_settings({"model.dropout=0.1", "model.layerdrop=0.3"}));
  job.run = setup.folder / "whole";
  pretrain(job);
  const std::string whole = job.run + "/ckpt/step-00000010/model.gguf";
  job.run = setup.folder / "stopped";
  job.progress = [](int64_t step, double, const std::string&) {
    if (step == 5) throw std::runtime_error("killed");
  };
  DOCTEST_CHECK_THROWS_AS(pretrain(job), std::runtime_error);
  job.progress = [](int64_t, double, const std::string&) {};
  job.resume = true;
  EXPECT(pretrain(job).step == 10);
  EXPECT(bytes_of_file(job.run + "/ckpt/step-00000010/model.gguf") == bytes_of_file(whole));
}

TEST_CASE("contrastive: utterances of a single frame train nothing, and are counted") {
  const Setup setup(2, tiny_wav2vec2());
  test::write_wav(setup.folder / "click.wav", test::golden_signal(1, 410));
  std::ofstream(setup.manifest, std::ios::app)
      << "click\t" << (setup.folder / "click.wav") << "\t0.0256\n";
  TrainJob job =
      setup.job(contrastive_settings({"train.steps=3", "batch.utterances=1", "batch.seconds=0"}));
  std::string said;
  job.say = [&](const std::string& line) { said += line + "\n"; };
  EXPECT(pretrain(job).skipped == 0);
  EXPECT_MESSAGE(said.find("1 of 3 utterances have a single frame and are never hidden\n") !=
                     std::string::npos,
                 said);
  double least = 1;  // of the three updates, one has nothing to learn from
  for (const auto& line : metrics(job.run))
    if (line.contains("contrastive")) least = std::min(least, line.at("contrastive").get<double>());
  EXPECT(least == 0);
}

TEST_CASE("contrastive: what cannot be done is said before a run is made") {
  const Setup hubert(3), setup(3, tiny_wav2vec2());
  const auto fails = [&](const Setup& where, const std::vector<std::string>& settings, Kind kind,
                         const std::string& what) {
    const Error e = test::error_of([&] { pretrain(where.job(contrastive_settings(settings))); });
    EXPECT(e.kind == kind);
    EXPECT_MESSAGE(e.message.find(what) != std::string::npos, e.message);
    EXPECT(!fs::exists(where.folder / "run"));
  };
  fails(hubert, {}, Kind::usage, "is a hubert model");
  fails(setup, {"pretrain.objective=bert"}, Kind::usage, "pretrain.objective");
  fails(setup, {"pretrain.negatives=0"}, Kind::usage, "pretrain.negatives");
  fails(setup, {"pretrain.gumbel_decay=1.5"}, Kind::usage, "pretrain.gumbel");
  Config odd = tiny_wav2vec2();
  odd.pretrain.vq_groups = 3;
  fails(Setup(3, odd), {}, Kind::input, "pretrain.vq.groups 3 does not divide pretrain.dim 16");
}
