// Twenty updates of stable fine-tuning against PyTorch in float64, through files of audio, a
// manifest and the trainer (tests/golden/README.md).
#include <fmt/format.h>
#include <sndfile.h>

#include <nlohmann/json.hpp>

#include "models/checkpoint.h"
#include "models/initialise.h"
#include "tests/doctest.h"
#include "tests/golden_signal.h"
#include "tests/op_spec.h"
#include "tests/temporary_folder.h"
#include "train/finetune.h"
#include "train/tasks/finetune.h"

using namespace sft;
using test::GoldenFile;

namespace {

constexpr int kPool = 8, kUnits = 9;

void write_wav(const std::string& path, const std::vector<float>& samples) {
  SF_INFO info{.samplerate = 16000, .channels = 1, .format = SF_FORMAT_WAV | SF_FORMAT_PCM_16};
  SNDFILE* file = sf_open(path.c_str(), SFM_WRITE, &info);
  REQUIRE(file != nullptr);
  std::vector<int16_t> pcm;
  for (float x : samples) pcm.push_back(static_cast<int16_t>(std::lround(x * 32768)));
  sf_write_short(file, pcm.data(), static_cast<sf_count_t>(pcm.size()));
  sf_close(file);
}

// The pool as audio files and a manifest; tokens "1" ... "8" are the labels. Every row is also dev.
std::string write_pool(const test::TemporaryFolder& folder, const GoldenFile& golden) {
  std::string train = "id\tpath\tseconds\ttext\tsplit\n", dev;
  for (int i = 0; i < kPool; ++i) {
    const std::string prefix = fmt::format("utterance.{}.", i);
    const int64_t samples = golden.integer(prefix + "samples");
    write_wav(folder / fmt::format("{}.wav", i),
              test::golden_signal(static_cast<uint32_t>(golden.integer(prefix + "seed")), samples));
    std::string text;
    for (int32_t label : golden.integers(prefix + "labels"))
      text += fmt::format("{}{}", text.empty() ? "" : " ", label);
    const double seconds = static_cast<double>(samples) / 16000;
    train += fmt::format("t{}\t{}.wav\t{:.4f}\t{}\ttrain\n", i, i, seconds, text);
    dev += fmt::format("d{}\t{}.wav\t{:.4f}\t{}\tdev\n", i, i, seconds, text);
  }
  write_text(folder / "pool.tsv", train + dev);
  std::string units = "<pad>\n";
  for (int u = 1; u < kUnits; ++u) units += fmt::format("{}\n", u);
  write_text(folder / "units.txt", units);
  return folder / "pool.tsv";
}

std::vector<Batch> golden_batches(const GoldenFile& golden) {
  const std::vector<int32_t> flat = golden.integers("batches");
  std::vector<Batch> batches;
  for (size_t u = 0; u < flat.size(); u += 4) {
    Batch batch;
    for (size_t j = 0; j < 4; ++j) batch.push_back(static_cast<uint32_t>(flat[u + j]));
    batches.push_back(batch);
  }
  return batches;
}

struct Expectation {
  const char* name;
  const char* model;
  const char* head;
};

std::vector<nlohmann::json> training_lines(const std::string& path) {
  std::vector<nlohmann::json> lines;
  std::istringstream text(read_text(path));
  for (std::string line; std::getline(text, line);)
    if (auto json = nlohmann::json::parse(line); json.contains("loss")) lines.push_back(json);
  return lines;
}

void follow_pytorch(Device device) {
  for (const Expectation& e : {Expectation{"finetune-linear-post", "hubert-group", "linear"},
                               {"finetune-linear-pre", "wav2vec2-layer", "linear"},
                               {"finetune-blstm", "hubert-group", "blstm"}}) {
    const GoldenFile golden(std::string(e.name) + ".safetensors");
    const test::TemporaryFolder folder;
    const std::string manifest_path = write_pool(folder, golden);
    ConfigBuilder builder("ctc");
    for (const char* setting :
         {"train.steps=20", "optim.lr=1e-3", "model.dropout=0", "model.attention_dropout=0",
          "model.activation_dropout=0", "model.input_dropout=0", "head.dropout=0",
          "augment.specaugment=false", "batch.utterances=4", "log.every=1", "head.width=12",
          "head.layers=2"})
      builder.set(setting);
    builder.set("head.kind", e.head, "test");
    builder.set("data.units", folder / "units.txt", "test");
    if (device == Device::cuda) builder.set("run.device=cuda");
    const RunConfig config = builder.finish();
    const Units units = Units::named(config.data.units);

    ModelFile base = open_model(test::golden("models/" + std::string(e.model)));
    Config model_config = base.config;
    model_config.task = {
        .kind = "ctc", .head = e.head, .width = 12, .layers = 2, .units = units.symbols()};
    FineTuneModel model{Encoder(model_config), {TaskHead(model_config.task, model_config.width)}};
    for (const TensorInfo& info : golden.tensors())
      if (info.name.starts_with("initial."))
        base.tensors.add_owned(info.name.substr(8), info.shape, golden.values(info.name));
    ParamStore store(device == Device::cuda ? &shared_gpu() : nullptr);
    store.bind(param_requests(model), base.tensors, e.model,
               [&](std::string_view name) { return finetune_range(name, config.train.freeze); },
               {"head", "encoder"});

    const Manifest all = read_manifest(manifest_path);
    DataCheckOptions options;
    options.units = units;
    options.target = target_text(config.data.units, Normalise::none);
    Split train{all.select("train"), {}}, dev{all.select("dev"), {}};
    train.check = check_data(train.manifest, options),
    dev.check = check_data(dev.manifest, options);
    const auto objective =
        ctc_objective(config, model, units, train, dev, 1, {int64_t{1} << 24, 0, ""});
    RunDir run = RunDir::create(folder / "run", to_toml(config), "{}");
    Trainer trainer(config, model_config, store, {}, *objective, run, golden_batches(golden));
    trainer.plan_memory(int64_t{1} << 30);
    trainer.run([](int64_t, double, const std::string&) {});

    const std::vector<float> loss = golden.values("loss"), norm = golden.values("norm"),
                             rate = golden.values("rate");
    const std::vector<nlohmann::json> lines = training_lines(folder / "run/metrics.jsonl");
    REQUIRE(lines.size() == 20);
    for (size_t u = 0; u < 20; ++u) {
      const auto near = [&](const char* field, double expected, double tolerance) {
        const double ours = lines[u][field];
        EXPECT_MESSAGE(
            std::abs(ours - expected) <= tolerance * std::abs(expected) + 1e-12,
            fmt::format("{} update {} {}: {} expected {}", e.name, u, field, ours, expected));
      };
      near("loss", loss[u], 3e-5), near("norm", norm[u], 3e-4), near("lr", rate[u], 1e-6);
    }
    const ModelFile tuned = open_model(folder / "run/ckpt/step-00000020");
    for (const auto& [name, tensor] : tuned.tensors.tensors) {
      const Tensor before = base.tensors.find(name);
      if (!golden.has("final." + name)) {  // frozen: the same bits
        EXPECT_MESSAGE(std::memcmp(tensor.data, before.data, before.bytes()) == 0, name);
        continue;
      }
      if (name.ends_with("attn.k.bias")) continue;  // moved by rounding noise alone
      const std::vector<float> expected = golden.values("final." + name);
      double error = 0, movement = 0;
      for (int64_t i = 0; i < tensor.count(); ++i) {
        error += std::pow(tensor.f32()[i] - static_cast<double>(expected[i]), 2);
        movement += std::pow(expected[i] - static_cast<double>(before.f32()[i]), 2);
      }
      EXPECT_MESSAGE(std::sqrt(error) <= 4e-3 * std::sqrt(movement) + 1e-9,
                     fmt::format("{} {}: off by {:.3g} of its movement", e.name, name,
                                 std::sqrt(error / movement)));
    }
  }
}

}  // namespace

TEST_CASE("golden: twenty updates of stable fine-tuning follow PyTorch") {
  follow_pytorch(Device::cpu);
}
TEST_CASE("golden: twenty updates of stable fine-tuning on cuda follow PyTorch") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  follow_pytorch(Device::cuda);
}
