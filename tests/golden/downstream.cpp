// Heads of s3prl's downstream checkpoints: logits against those that s3prl's own modules compute
// (tests/golden/make/s3prl_downstream.py).
#include "engine/audio/decode.h"
#include "models/checkpoint.h"
#include "tests/doctest.h"
#include "tests/golden_signal.h"
#include "tests/op_spec.h"
#include "tests/run_program.h"
#include "tests/temporary_folder.h"
#include "train/corpus.h"
#include "train/manifest.h"
#include "train/tasks/finetune.h"

using namespace sft;

namespace {

struct Downstream {
  ModelFile file;
  FineTuneModel model;
  OpRun run;
  ParamStore store;
  Context ctx;

  explicit Downstream(const std::string& name)
      : file(open_model(test::golden("torch/" + name))),
        run(/*poison=*/true, 0, 0, {}),
        store(run.ctx.gpu),
        ctx{.device = run.ctx.device,
            .acts = run.acts,
            .scratch = run.scratch,
            .prepared = store.prepared(),
            .gpu = run.ctx.gpu,
            .math = run.ctx.math} {
    const auto states = static_cast<int>(file.config.states());
    model = {Encoder(file.config), {TaskHead(file.config.task, file.config.width, states)}};
    store.bind(param_requests(model), file.tensors, name);
  }

  Tensor logits(const std::vector<float>& wave) {
    WavePack pack;
    const auto length = static_cast<int32_t>(wave.size());
    const int32_t utterance = 0;
    pack.assign(file.config, {&length, 1}, {&utterance, 1});
    Tape t(ctx, false);
    const Tensor samples = pack.wave(ctx);
    pack.place(ctx, samples, 0, wave);
    const Var frames = model.encoder.features(t, samples, pack);
    const HiddenStates hidden = model.encoder.encode(t, frames, pack.frames(), {.keep_all = true});
    return model.task.head(t, std::span(hidden.states).first(hidden.count), pack.frames());
  }
};

void expect_logits(const std::string& file, const std::string& golden, double allowed) {
  INFO(file);
  const test::GoldenFile values("s3prl-downstream.safetensors");
  Downstream downstream(file);
  const Tensor logits = downstream.logits(test::golden_signal(21920, 21920));
  const std::vector<float> expected = values.values(golden);
  REQUIRE(logits.count() == std::ssize(expected));
  std::vector<float> ours;
  for (int64_t r = 0; r < logits.rows(); ++r)
    ours.insert(ours.end(), logits.row(r), logits.row(r) + logits.width());
  EXPECT(test::relative_error(ours.data(), expected.data(), std::ssize(ours)) < allowed);
}

}  // namespace

TEST_CASE("golden: s3prl's ASR and keyword heads compute what they do there") {
  // Both sides in f32. A unit in the last place of a random half of the samples moves these logits
  // of ASR by 2e-6 to 1.1e-5, and those of keywords by 1e-7.
  expect_logits("s3prl-asr.ckpt", "asr.logits", 3e-5);
  expect_logits("s3prl-ks.ckpt", "ks.logits", 1e-5);
}

TEST_CASE("golden: sft-transcribe runs a head that reads a weighted sum of states") {
  if (test::absent("sft-transcribe") || test::absent("sft-convert")) return;
  const test::TemporaryFolder folder;
  const std::string model = folder / "asr.gguf";
  REQUIRE(
      test::run_program("sft-convert", {test::golden("torch/s3prl-asr.ckpt"), "-o", model}).code ==
      0);
  const std::string audio = read_manifest(find_corpus("digits", corpora_folder())).rows[0].file;
  const auto heard = test::run_program("sft-transcribe", {model, audio});
  INFO(heard.err);
  REQUIRE(heard.code == 0);
  Downstream downstream("s3prl-asr.ckpt");
  const Units units = Units::from_symbols(downstream.file.config.task.units, 0);
  EXPECT(units.characters());
  const std::string text = units.decode(greedy_ctc(downstream.logits(load_audio(audio)), 0));
  EXPECT(!text.empty());
  EXPECT(heard.out == audio + "\t" + text + "\n");
}
