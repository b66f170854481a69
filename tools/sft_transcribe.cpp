// sft-transcribe: what a fine-tuned model hears (docs/sft-transcribe.md).
#include "engine/audio/decode.h"
#include "engine/cpu/isa.h"
#include "models/checkpoint.h"
#include "models/task_head.h"
#include "tools/cli.h"
#include "train/tasks/finetune.h"

#include <nlohmann/json.hpp>

using namespace sft;

namespace {

// A model with its head, ready to run one utterance at a time.
class Recogniser {
 public:
  explicit Recogniser(const std::string& path) : file_(open_model(path)) {
    if (file_.config.task.kind.empty())
      fail(Kind::input, Hint{"fine-tune it first: sft-train MODEL --ctc WHAT"},
           "{}: this model has no task head", path);
    model_ = {Encoder(file_.config), {TaskHead(file_.config.task, file_.config.width)}};
    store_.bind(param_requests(model_), file_.tensors, path);
  }

  const ModelFile& file() const { return file_; }

  std::string operator()(const std::string& path) {
    const std::vector<float> samples = load_audio(path);
    const Config& config = file_.config;
    if (config.frames(static_cast<int64_t>(samples.size())) == 0)
      fail(Kind::input, "{}: {} samples at 16 kHz (expected at least {})", path, samples.size(),
           config.receptive());
    acts_.rewind(0), scratch_.rewind(0);
    Context ctx{.acts = acts_, .scratch = scratch_, .prepared = store_.prepared()};
    Tape tape(ctx, /*recording=*/false);
    const auto length = static_cast<int32_t>(samples.size());
    const int32_t utterance = 0;
    pack_.assign(config, {&length, 1}, {&utterance, 1});
    const Tensor wave = pack_.wave(ctx);
    pack_.place(ctx, wave, 0, samples);
    const Var frames = model_.encoder.features(tape, wave, pack_);
    const Var last = model_.encoder.encode(tape, frames, pack_.frames(), {}).last();
    return read(model_.task.head(tape, last, pack_.frames()));
  }

 private:
  std::string read(Tensor logits) const {
    const Config::Task& task = file_.config.task;
    if (task.kind == "ctc") {
      const Units units = Units::from_symbols(task.units, static_cast<int>(task.blank));
      return units.decode(greedy_ctc(logits, units.blank()));
    }
    const float* row = logits.row(0);
    return task.units[std::max_element(row, row + logits.width()) - row];
  }

  ModelFile file_;
  FineTuneModel model_;
  ParamStore store_;
  Arena acts_, scratch_;
  WavePack pack_;
};

}  // namespace

int main(int argc, char** argv) {
  return run_tool(argc, argv, "sft-transcribe", [](Cli& cli) {
    std::string model;
    std::vector<std::string> audio;
    cli.about(
        "Prints what a fine-tuned MODEL recognises in each audio file: its text (CTC), or its "
        "class.");
    cli.argument("MODEL", model, "a run, or a model file with a task head");
    cli.argument("AUDIO", audio, "audio files of any format and rate");
    cli.parse();
    cpu::choose_isa();
    Recogniser recognise(model);
    for (const std::string& remark : recognise.file().remarks) cli.say("{}", remark);
    for (const std::string& path : audio) {
      const std::string text = recognise(path);
      if (cli.json())
        fmt::print("{}\n", nlohmann::json{{"path", path}, {"text", text}}.dump(
                               -1, ' ', false, nlohmann::json::error_handler_t::replace));
      else
        fmt::print("{}\t{}\n", path, text);
    }
  });
}
