// sft-transcribe: what a fine-tuned model hears (docs/sft-transcribe.md).
#include "engine/audio/decode.h"
#include "engine/cpu/isa.h"
#include "engine/device.h"
#include "engine/memory.h"
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
      : file_(open_model(path)), math_(math), gpu_(gpu), store_(gpu), memory_(gpu) {
    check_finite(file_);
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
    check_memory(path);
    const std::vector<float> samples = load_audio(path);
    assign(path, std::ssize(samples));
    std::string text;
    memory_.step(store_.prepared(), math_, [&](Context& ctx) {
      Tape tape(ctx, /*recording=*/false);
      const Tensor result = logits(tape, samples);
      ScratchScope host(host_);
      if (!ctx.dry) text = read(on_host(ctx, result, host_));
    });
    return text;
  }

 private:
  void assign(const std::string& path, int64_t samples) {
    const Config& config = file_.config;
    if (config.frames(samples) == 0)
      fail(Kind::input, "{}: {} samples at 16 kHz (expected at least {})", printable(path), samples,
           config.min_samples());
    const auto length = static_cast<int32_t>(samples);
    const int32_t utterance = 0;
    pack_.assign(config, {&length, 1}, {&utterance, 1});
  }

  // Before anything is decoded. A device's memory is checked when it is taken.
  void check_memory(const std::string& path) {
    if (gpu_) return;
    const AudioInfo info = probe_audio(path);
    assign(path, samples_at_16k(info));
    memory_.forget_peak();
    Context dry = memory_.context(store_.prepared(), math_, true);
    Tape tape(dry, /*recording=*/false);
    logits(tape, {});
    const int64_t audio = samples_at_16k(info) * int64_t{sizeof(float)};
    const int64_t needed = memory_.peak() + audio, available = available_memory();
    constexpr double kGib = 1 << 30;
    if (needed > available)
      fail(Kind::resource, Hint{"cut it into shorter files"},
           "{}: {:.1f} s of audio need {:.1f} GiB of memory, {:.1f} GiB are free", printable(path),
           info.seconds, static_cast<double>(needed) / kGib, static_cast<double>(available) / kGib);
  }

  Tensor logits(Tape& tape, std::span<const float> samples) {
    const Tensor wave = pack_.wave(tape.ctx);
    if (!tape.ctx.dry) pack_.place(tape.ctx, wave, 0, samples);
    return head(tape, model_.encoder.features(tape, wave, pack_));
  }

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
  cuda::Runtime* gpu_;
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
