// Logits and texts of transformers' ...ForCTC folders (tests/golden/README.md).
#include <nlohmann/json.hpp>

#include "models/checkpoint.h"
#include "tests/doctest.h"
#include "tests/golden_signal.h"
#include "tests/op_spec.h"
#include "tests/run_program.h"
#include "tests/train/tiny_speech.h"
#include "train/tasks/finetune.h"
#include "train/text.h"

using namespace sft;
using test::GoldenFile;

namespace {

constexpr const char* kModels[] = {"hubert-ctc", "wav2vec2-ctc", "wavlm-ctc"};

std::vector<float> golden_wave() { return test::golden_signal(5, 21920); }

std::string golden_text(const std::string& name) {
  return nlohmann::json::parse(read_text(test::golden("ctc-heads.json"))).at(name);
}

// logits [T, V] of one utterance, handed to f.
template <class F>
void with_logits(const std::string& path, const std::vector<float>& wave, F&& f) {
  const ModelFile file = open_model(path);
  OpRun run(/*poison=*/true);
  ParamStore store(run.ctx.gpu);
  Context ctx{.acts = run.acts, .scratch = run.scratch, .prepared = store.prepared()};
  FineTuneModel model{Encoder(file.config), {TaskHead(file.config.task, file.config.width)}};
  store.bind(param_requests(model), file.tensors, path);
  Tape tape(ctx, false);
  WavePack pack;
  const auto length = static_cast<int32_t>(wave.size());
  const int32_t utterance = 0;
  pack.assign(file.config, {&length, 1}, {&utterance, 1});
  const Tensor samples = pack.wave(ctx);
  pack.place(ctx, samples, 0, wave);
  const Var frames = model.encoder.features(tape, samples, pack);
  const Var last = model.encoder.encode(tape, frames, pack.frames(), {}).last();
  const Var logits = model.task.head(tape, last, pack.frames());
  f(file.config.task, logits.value);
}

}  // namespace

TEST_CASE("ctc heads: logits and text are those of transformers") {
  const GoldenFile golden("ctc-heads.safetensors");
  for (const char* name : kModels) {
    INFO(name);
    const std::vector<float> expected = golden.values(std::string(name) + ".logits");
    with_logits(test::golden(std::string("models/") + name), golden_wave(),
                [&](const Config::Task& task, Tensor logits) {
                  REQUIRE(logits.count() == static_cast<int64_t>(expected.size()));
                  std::vector<float> ours;
                  for (int64_t t = 0; t < logits.rows(); ++t)
                    ours.insert(ours.end(), logits.row(t), logits.row(t) + logits.width());
                  EXPECT(test::relative_error(ours.data(), expected.data(), logits.count()) < 5e-5);
                  const Units units = Units::from_symbols(task.units, static_cast<int>(task.blank));
                  EXPECT(units.decode(greedy_ctc(logits, units.blank())) == golden_text(name));
                });
  }
}

TEST_CASE("ctc heads: sft-transcribe says what transformers decodes, from every container") {
  if (test::absent("sft-transcribe") || test::absent("sft-convert")) return;
  const test::TemporaryFolder folder;
  const std::string wav = folder / "a.wav";
  test::write_wav(wav, golden_wave());
  for (const char* name : kModels) {
    const std::string theirs = test::golden(std::string("models/") + name);
    const std::string gguf = folder / (std::string(name) + ".gguf"), hf = folder / name;
    REQUIRE(test::run_program("sft-convert", {theirs, "-o", gguf}).code == 0);
    REQUIRE(test::run_program("sft-convert", {gguf, "-o", hf}).code == 0);
    for (const std::string& model : {theirs, gguf, hf}) {
      const test::Outcome o = test::run_program("sft-transcribe", {model, wav});
      INFO(o.err);
      EXPECT(o.out == wav + "\t" + golden_text(name) + "\n");
    }
  }
}
