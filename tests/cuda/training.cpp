// Training on a device: its steps replayed or done at once, and the device lost in the middle.
#include <algorithm>
#include <cstdlib>

#include "engine/cuda/emulator/lost_device.h"
#include "tests/op_spec.h"
#include "tests/train/tiny_speech.h"
#include "train/finetune.h"
#include "train/pretrain/pretrain.h"

namespace sft {
namespace {

// Dropout and SpecAugment on; two groups of utterances that come again in every epoch.
TrainJob job_on_device(const test::TinySpeech& speech, const char* run) {
  return speech.job(run, {"run.device=cuda", "train.steps=8", "train.head_only=0.25",
                          "model.dropout=0.1", "head.dropout=0.1", "eval.every=1"});
}

void same_checkpoints(const std::string& a, const std::string& b, const char* step) {
  for (const char* file : {"/model.gguf", "/state.safetensors"})
    EXPECT_MESSAGE(read_text(a + "/ckpt/" + step + file, 1 << 24) ==
                       read_text(b + "/ckpt/" + step + file, 1 << 24),
                   b << file);
}

// Runs the job as it is, then with nothing queued. What it said the first time.
std::string same_bits_at_once(TrainJob queued, TrainerReport (*train)(const TrainJob&),
                              const char* last) {
  TrainJob at_once = queued;
  at_once.run += "-at-once";
  std::string said;
  queued.say = [&](const std::string& line) { said += line + "\n"; };
  train(queued);
  setenv("SFT_SYNC", "1", 1);
  train(at_once);
  unsetenv("SFT_SYNC");
  same_checkpoints(queued.run, at_once.run, last);
  return said;
}

}  // namespace

TEST_CASE("trainer on cuda: replayed steps have the bits of steps done at once") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  const test::TinySpeech speech(4);
  const std::string said =
      same_bits_at_once(job_on_device(speech, "run"), finetune, "step-00000008");
  // The first epoch reads frozen features back, the first two updates train the head only.
  EXPECT_MESSAGE(said.find("graphs: 2 captured, 2 of 8 steps replayed") != std::string::npos, said);
}

TEST_CASE("trainer on cuda: groups of about as many frames share graphs, with the same bits") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  const test::TinySpeech speech(6, 330);
  for (const char* head : {"linear", "blstm"}) {
    const TrainJob job =
        speech.job(std::string("share-") + head,
                   {"run.device=cuda", "train.steps=12", "train.head_only=0", "model.dropout=0.1",
                    "head.dropout=0.1", "head.layers=1", std::string("head.kind=") + head});
    const std::string said = same_bits_at_once(job, finetune, "step-00000012");
    EXPECT_MESSAGE(said.find("graphs: 1 captured, 7 of 12 steps replayed") != std::string::npos,
                   said);
  }
}

TEST_CASE("trainer on cuda: a BLSTM head in queued steps, with the same bits") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  const test::TinySpeech speech(4);
  same_bits_at_once(speech.job("blstm", {"run.device=cuda", "train.steps=2", "train.accumulate=2",
                                         "head.kind=blstm", "head.layers=1"}),
                    finetune, "step-00000002");
}

TEST_CASE("trainer on cuda: pre-training in queued steps, with the same bits") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  test::TinySpeech speech(4);
  // Masks, and layers that are dropped, differ from update to update: so does what memory they
  // need.
  for (const std::string objective : {"hubert", "wav2vec2"})
    for (const std::string drop : {"0", "0.5"}) {
      speech.model = test::golden("models/" + objective + "-group");
      ConfigBuilder builder("pretrain");
      builder.set("data.manifest=" + speech.manifest), builder.set("model.layerdrop=" + drop);
      builder.set("pretrain.objective=" + objective);
      builder.set(drop == "0" ? "run.math=exact" : "run.math=bf16");
      for (const char* setting : {"run.device=cuda", "train.steps=2", "batch.utterances=2",
                                  "train.accumulate=2", "pretrain.clusters=4"})
        builder.set(setting);
      const TrainJob job{.model = speech.model,
                         .config = builder.finish(),
                         .run = speech.folder / objective + drop};
      same_bits_at_once(job, pretrain, "step-00000002");
    }
}

TEST_CASE("trainer on cuda: a device lost in the middle costs the updates since a checkpoint") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  using cuda::emulator::lose_device;
  if (!lose_device) return test::skip("needs the emulator");
  const test::TinySpeech speech(4);
  TrainJob whole = job_on_device(speech, "whole"), broken = job_on_device(speech, "broken");
  finetune(whole);
  broken.progress = [&](int64_t done, double, const std::string&) {
    if (done == 5) lose_device(50);
  };
  const Error error = test::error_of([&] { finetune(broken); });
  EXPECT(error.kind == Kind::resource);
  EXPECT(error.message.find("the device is lost") != std::string::npos);
  EXPECT(error.hint.find("--resume") != std::string::npos);
  lose_device(-1);
  broken.resume = true;
  broken.progress = whole.progress;
  finetune(broken);
  same_checkpoints(whole.run, broken.run, "step-00000008");
}

}  // namespace sft
