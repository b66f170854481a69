#include "train/trainer.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <sstream>

#include "models/checkpoint.h"
#include "tests/allocations.h"
#include "tests/train/tiny_trainer.h"

using namespace sft;
namespace fs = std::filesystem;

namespace {

std::vector<nlohmann::json> lines(const std::string& run, const char* with) {
  std::vector<nlohmann::json> found;
  std::istringstream text(read_text(run + "/metrics.jsonl"));
  for (std::string line; std::getline(text, line);)
    if (auto json = nlohmann::json::parse(line); json.contains(with)) found.push_back(json);
  return found;
}

double loss(const std::string& run, size_t update) { return lines(run, "loss").at(update)["loss"]; }

const std::vector<std::string> kNoNoise = {"model.dropout=0", "model.attention_dropout=0",
                                           "model.input_dropout=0", "head.dropout=0",
                                           "augment.specaugment=false"};

std::vector<std::string> with_no_noise(std::vector<std::string> settings) {
  settings.insert(settings.end(), kNoNoise.begin(), kNoNoise.end());
  return settings;
}

// Largest difference of any tensor of two checkpoints, relative to the larger norm.
double distance(const std::string& a, const std::string& b) {
  const ModelFile x = open_model(a), y = open_model(b);
  double worst = 0;
  for (const auto& [name, tensor] : x.tensors.tensors)
    worst = std::max(
        worst, test::relative_error(tensor.f32(), y.tensors.find(name).f32(), tensor.count()));
  return worst;
}

}  // namespace

TEST_CASE("trainer: phases; what is frozen keeps its bits; metrics and files of a run") {
  const test::TinySpeech speech;
  const TrainJob job = speech.job("run", {"train.head_only=0.3", "eval.every=5"});
  const TrainerReport report = finetune(job);
  EXPECT(report.step == 10);
  EXPECT(report.skipped == 0);
  const ModelFile base = open_model(speech.model), tuned = open_model(job.run);
  for (const auto& [name, tensor] : tuned.tensors.tensors) {
    if (name.starts_with("task.")) continue;
    const Tensor before = base.tensors.find(name);
    const bool same = std::memcmp(tensor.data, before.data, tensor.bytes()) == 0;
    const bool frozen = name.starts_with("conv.") || name == "mask_emb";
    if (report.best_step > 4 || frozen)
      EXPECT_MESSAGE(same == frozen, name << " at step " << report.best_step);
  }
  const auto updates = lines(job.run, "loss");
  REQUIRE(updates.size() == 10);
  EXPECT(updates[2]["phase"] == "head-only hold");
  EXPECT(updates[3]["phase"] == "hold");
  EXPECT(updates[9]["phase"] == "decay");
  EXPECT(updates[0]["lr"] == 0);
  EXPECT(lines(job.run, "dev.wer").size() == 10);  // E = max(1, min(5, 10 / 10))
  for (const char* name : {"done", "record.json", "run.toml", "log.txt", "ckpt/BEST", "ckpt/LAST",
                           "eval/step-00000010/ref.trn", "eval/step-00000010/hyp.trn",
                           "eval/step-00000010/scores.json"})
    EXPECT_MESSAGE(fs::exists(job.run + "/" + name), name);
  EXPECT(!fs::exists(job.run + "/lock"));
  const auto record = nlohmann::json::parse(read_text(job.run + "/record.json"));
  EXPECT(record["base"]["id"] == model_id(base.tensors));
}

TEST_CASE("trainer: the encoder does not move in the head-only phase") {
  const test::TinySpeech speech;
  const TrainJob job = speech.job("run", {"train.head_only=1", "train.steps=4"});
  finetune(job);
  const ModelFile base = open_model(speech.model), tuned = open_model(job.run);
  for (const auto& [name, tensor] : base.tensors.tensors)
    if (!name.starts_with("pretrain."))
      EXPECT_MESSAGE(std::memcmp(tensor.data, tuned.tensors.find(name).data, tensor.bytes()) == 0,
                     name);
}

TEST_CASE("trainer: what pre-training left passes through with its bits") {
  test::TinySpeech speech;
  speech.model = test::golden("models/wav2vec2-group");
  const TrainJob job = speech.job("run", {"train.steps=2"});
  finetune(job);
  const ModelFile base = open_model(speech.model), tuned = open_model(job.run);
  int64_t found = 0;
  for (const auto& [name, tensor] : base.tensors.tensors) {
    if (!name.starts_with("pretrain.")) continue;
    ++found;
    const Tensor after = tuned.tensors.find(name);
    REQUIRE(after.data);
    EXPECT_MESSAGE(std::memcmp(tensor.data, after.data, tensor.bytes()) == 0, name);
  }
  EXPECT(found > 0);
}

// Sums in another order: rounding, which Adam's first steps (a sign of the gradient) let grow.
TEST_CASE("trainer: accumulation gives the sums of one large batch") {
  const test::TinySpeech speech(4, 0);
  const auto run = [&](const char* name, std::vector<std::string> settings) {
    settings.insert(settings.end(),
                    {"train.steps=2", "train.head_only=0", "sched.warmup=0", "optim.eps=1e-3"});
    finetune(speech.job(name, with_no_noise(settings)));
    return speech.folder / name;
  };
  const std::string whole = run("whole", {"batch.utterances=4"});
  const std::string halves = run("halves", {"batch.utterances=2", "train.accumulate=2"});
  for (size_t u : {0, 1}) EXPECT(loss(halves, u) == doctest::Approx(loss(whole, u)).epsilon(1e-5));
  EXPECT(distance(whole + "/ckpt/step-00000002", halves + "/ckpt/step-00000002") < 1e-4);
}

TEST_CASE("trainer: batches cut into pieces to fit the memory give the same update") {
  const test::TinySpeech speech(4, 0);
  const auto run = [&](const std::string& name, bool cut) {
    const TrainJob job =
        speech.job(name, with_no_noise({"batch.utterances=4", "train.steps=2", "train.head_only=0",
                                        "sched.warmup=0", "optim.eps=1e-3"}));
    test::TinyTrainer tiny(speech, job);
    Trainer& trainer = tiny.open();
    const Trainer::MemoryPlan whole = trainer.plan_memory(int64_t{1} << 40);
    EXPECT(whole.micro_frames == 0);
    EXPECT(test::error_of([&] { trainer.plan_memory(1000); }).kind == Kind::resource);
    const int64_t available = whole.total() - whole.process - (cut ? whole.activations / 3 : 0);
    EXPECT((trainer.plan_memory(available).micro_frames > 0) == cut);
    trainer.run([](int64_t, double, const std::string&) {});
    return job.run;
  };
  const std::string whole = run("whole", false), cut = run("cut", true);
  for (size_t u : {0, 1}) EXPECT(loss(cut, u) == doctest::Approx(loss(whole, u)).epsilon(1e-5));
  EXPECT(distance(whole + "/ckpt/step-00000002", cut + "/ckpt/step-00000002") < 1e-4);
}

TEST_CASE("trainer: an update without a finite gradient is skipped and named; too many end it") {
  const test::TinySpeech speech;
  TrainJob job = speech.job("run", {"optim.lr=1e30", "train.max_skips=3", "train.steps=40",
                                    "train.head_only=0", "optim.clip=1e30", "eval.every=100"});
  const Error e = test::error_of([&] { finetune(job); });
  EXPECT(e.kind == Kind::diverged);
  EXPECT(e.message.find("4 updates in a row") != std::string::npos);
  const auto updates = lines(job.run, "loss");
  const auto& last = updates.back();
  EXPECT(last["skipped"] == 4);
  EXPECT(last["step"].get<int64_t>() == updates[updates.size() - 2]["step"].get<int64_t>() + 1);
  EXPECT(read_text(job.run + "/log.txt").find("skipped; batch train") != std::string::npos);
  EXPECT(!fs::exists(job.run + "/done"));
}

TEST_CASE("trainer: the first evaluation makes a BEST, and ties keep the earlier") {
  const test::TinySpeech speech;
  const TrainJob job = speech.job("run", {"optim.lr=0"});  // every evaluation is the same
  const TrainerReport report = finetune(job);
  EXPECT(report.best_step == 1);
  EXPECT(read_text(job.run + "/ckpt/BEST") == "step-00000001\n");
  EXPECT(fs::exists(job.run + "/ckpt/step-00000001"));
}

TEST_CASE("trainer: classes") {
  const test::TinySpeech speech;
  const TrainJob job = speech.job("run", {"train.steps=5"}, "classify");
  const TrainerReport report = finetune(job);
  EXPECT(report.best >= 0);
  EXPECT(lines(job.run, "dev.accuracy").size() == 5);
  const ModelFile tuned = open_model(job.run);
  EXPECT(tuned.config.task.units == std::vector<std::string>{"s0", "s1"});
}

TEST_CASE("trainer: a damaged newest checkpoint costs its updates and nothing else") {
  const test::TinySpeech speech;
  TrainJob job = speech.job("whole"), broken = speech.job("broken");
  finetune(job), finetune(broken);
  fs::remove(broken.run + "/done");
  fs::resize_file(broken.run + "/ckpt/step-00000010/state.safetensors", 100);
  broken.resume = true;
  std::vector<std::string> said;
  broken.say = [&](const std::string& line) { said.push_back(line); };
  finetune(broken);
  EXPECT(std::any_of(said.begin(), said.end(), [](const std::string& line) {
    return line.starts_with("passing over a damaged checkpoint");
  }));
  for (const char* file :
       {"/ckpt/step-00000010/model.gguf", "/ckpt/step-00000010/state.safetensors"})
    EXPECT(read_text(job.run + file, 1 << 24) == read_text(broken.run + file, 1 << 24));
  EXPECT(lines(broken.run, "loss").size() == 10);
}

TEST_CASE("trainer: resuming wants the same configuration, model and manifest; done is done") {
  const test::TinySpeech speech;
  TrainJob job = speech.job("run", {"train.steps=2"});
  finetune(job);
  job.resume = true;
  std::vector<std::string> said;
  job.say = [&](const std::string& line) { said.push_back(line); };
  const std::string before = read_text(job.run + "/metrics.jsonl");
  EXPECT(finetune(job).step == 2);
  EXPECT(said.back().find("is finished (2 updates): nothing to do") != std::string::npos);
  EXPECT(read_text(job.run + "/metrics.jsonl") == before);
  const auto refused = [&](const TrainJob& other) {
    const Error e = test::error_of([&] { finetune(other); });
    EXPECT(e.kind == Kind::usage);
    return e.message;
  };
  TrainJob other = job;
  other.config.optim.lr = 0.5;
  EXPECT(refused(other).find("optim.lr is 0.5, was 0.001") != std::string::npos);
  other = job;
  other.model = test::golden("models/hubert-layer");
  EXPECT(refused(other).find("another model") != std::string::npos);
  write_text(speech.manifest, read_text(speech.manifest) + "\n", Existing::replace);
  EXPECT(refused(job).find("has changed since the run began") != std::string::npos);
}

TEST_CASE("trainer: updates allocate nothing after the first epochs") {
  const test::TinySpeech speech;
  TrainJob job = speech.job("run", {"train.steps=40", "eval.every=4", "log.every=1000",
                                    "head.kind=blstm", "head.layers=1"});
  std::vector<int64_t> counts;
  job.progress = [&](int64_t, double, const std::string&) {
    counts.push_back(test::allocations());
    test::count_allocations(true);
  };
  // an evaluation, at the end of every fourth update, is no part of a step
  finetune(job);
  test::count_allocations(false);
  REQUIRE(counts.size() == 40);
  for (size_t u = 24; u < counts.size(); ++u)
    if (u % 4) EXPECT_MESSAGE(counts[u] == 0, "update " << u << ": " << counts[u]);
}
