// sft-transcribe: what a fine-tuned model hears (docs/sft-transcribe.md).
#include "engine/audio/decode.h"
#include "engine/cpu/isa.h"
#include "engine/device.h"
#include "engine/step_memory.h"
#include "engine/transfer.h"
#include "models/checkpoint.h"
#include "models/task_head.h"
#include "tools/device_options.h"
#include "train/tasks/finetune.h"

#include <nlohmann/json.hpp>

using namespace sft;

namespace {

// A model with its head, ready to run one utterance at a time.
class Recogniser {
 public:
  Recogniser(const std::string& path, cuda::Runtime* gpu, Math math)
      : file_(open_model(path)), math_(math), store_(gpu), memory_(gpu) {
    if (file_.config.task.kind.empty())
      fail(Kind::input, Hint{"fine-tune it first: sft-train MODEL --ctc WHAT"},
           "{}: this model has no task head", path);
    if (file_.tensors.tensors.contains("task.layer_weights"))
      states_ = static_cast<int>(file_.config.states());
    model_ = {Encoder(file_.config), {TaskHead(file_.config.task, file_.config.width, states_)}};
    store_.bind(param_requests(model_), file_.tensors, path);
  }

  const ModelFile& file() const { return file_; }

  std::string operator()(const std::string& path) {
    const std::vector<float> samples = load_audio(path);
    const Config& config = file_.config;
    if (config.frames(static_cast<int64_t>(samples.size())) == 0)
      fail(Kind::input, "{}: {} samples at 16 kHz (expected at least {})", path, samples.size(),
           config.min_samples());
    const auto length = static_cast<int32_t>(samples.size());
    const int32_t utterance = 0;
    pack_.assign(config, {&length, 1}, {&utterance, 1});
    std::string text;
    memory_.step(store_.prepared(), math_, [&](Context& ctx) {
      Tape tape(ctx, /*recording=*/false);
      const Tensor wave = pack_.wave(ctx);
      pack_.place(ctx, wave, 0, samples);
      const Var frames = model_.encoder.features(tape, wave, pack_);
      const Tensor logits = head(tape, frames);
      ScratchScope host(host_);
      if (!ctx.dry) text = read(on_host(ctx, logits, host_));
    });
    return text;
  }

 private:
  // The head reads the last hidden state, or a weighted sum of all.
  Var head(Tape& tape, Var frames) const {
    const HiddenStates hidden =
        model_.encoder.encode(tape, frames, pack_.frames(), {.keep_all = states_ > 0});
    if (states_ == 0) return model_.task.head(tape, hidden.last(), pack_.frames());
    return model_.task.head(tape, std::span(hidden.states).first(states_), pack_.frames());
  }

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
  Math math_;
  ParamStore store_;
  StepMemory memory_;
  Arena host_;
  int states_ = 0;  // that the head reads by task.layer_weights
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
    DeviceOptions device;
    device.add_to(cli);
    cli.parse();
    device.settle(cli);
    cpu::choose_isa();
    const std::unique_ptr<cuda::Runtime> gpu = open_device(device.device, device.chosen());
    Recogniser recognise(model, gpu.get(), device.chosen());
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
