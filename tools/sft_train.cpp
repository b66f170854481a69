// sft-train: stable fine-tuning of an encoder on one task (docs/sft-train.md).
#include <filesystem>

#include "engine/cpu/isa.h"
#include "tools/cli.h"
#include "train/corpus.h"
#include "train/finetune.h"

using namespace sft;

namespace {

struct Options {
  std::string model, ctc, classify, label, output, recipe = "stable", head, config, data;
  std::vector<std::string> settings;
  int64_t steps = 0;
  bool resume = false, dry_run = false, force = false, print_config = false;

  void parse(Cli& cli) {
    cli.about(
        "Fine-tunes MODEL on one task: first its new head alone, then head and encoder, with the\n"
        "convolutions fixed (stable fine-tuning). Writes a run; sft-merge takes it from there.");
    cli.argument("MODEL", model, "GGUF file, Hugging Face folder, safetensors file, or run");
    cli.option("--ctc", ctc, "recognise speech: a manifest, or a corpus by name (digits, ted)");
    cli.option("--classify", classify, "classify utterances: a manifest, or a corpus by name");
    cli.option("--label", label, "the column of classes (with --classify)");
    cli.option("--data", data, "where corpora lie (default: $SFT_DATA, ./data, the built-in ones)");
    cli.option("-o,--output", output, "the run's folder (default: runs/MODEL-TASK)");
    cli.choice("--recipe", recipe, {"stable", "full"}, "full: no head-only phase");
    cli.option("--head", head, "CTC: blstm, linear or projector");
    cli.option("--steps", steps, "updates (train.steps)");
    cli.option("--config", config, "TOML file of keys");
    cli.option("--set", settings, "KEY=VALUE, over the file");
    cli.flag("--resume", resume, "go on with a run that was stopped");
    cli.flag("--dry-run", dry_run, "check everything, plan, write nothing");
    cli.flag("--force", force, "begin anew where a run is already");
    cli.flag("--print-config", print_config, "print every key, its value and where it is from");
    cli.parse();
    if (ctc.empty() == classify.empty())
      fail(Kind::usage, "give one task: --ctc WHAT or --classify WHAT");
    if (!classify.empty() && label.empty())
      fail(Kind::usage, Hint{"--label speaker"}, "--classify needs the column of its classes");
  }

  std::string task() const { return ctc.empty() ? label : ctc; }
};

ConfigBuilder build_config(const Cli& cli, const Options& o) {
  ConfigBuilder builder(o.ctc.empty() ? "classify" : "ctc");
  builder.recipe(o.recipe);
  if (!o.config.empty()) builder.file(o.config);
  for (const std::string& setting : o.settings) builder.set(setting);
  builder.set("data.manifest", find_corpus(o.ctc.empty() ? o.classify : o.ctc, o.data),
              "command line");
  if (!o.label.empty()) builder.set("data.label", o.label, "--label");
  if (!o.head.empty()) builder.set("head.kind", o.head, "--head");
  if (o.steps) builder.set("train.steps", std::to_string(o.steps), "--steps");
  if (cli.given("--seed")) builder.set("run.seed", std::to_string(cli.seed()), "--seed");
  builder.set("run.threads", std::to_string(cli.threads()), "--threads");
  if (builder.config().data.units == "phones")
    builder.set_default("eval.select", "per", "data.units");
  return builder;
}

std::string default_output(const Options& o) {
  namespace fs = std::filesystem;
  fs::path model = fs::path(o.model).lexically_normal();
  if (!model.has_filename()) model = model.parent_path();
  return "runs/" + model.stem().string() + "-" + fs::path(o.task()).stem().string();
}

}  // namespace

int main(int argc, char** argv) {
  return run_tool(argc, argv, "sft-train", [](Cli& cli) {
    Options o;
    o.parse(cli);
    cpu::choose_isa();
    const ConfigBuilder builder = build_config(cli, o);
    if (o.print_config) {
      fmt::print("{}", builder.print());
      return;
    }
    install_stop_signals();
    Progress line(cli);
    TrainJob job{.model = o.model,
                 .config = builder.finish(),
                 .run = o.output.empty() ? default_output(o) : o.output,
                 .resume = o.resume,
                 .force = o.force,
                 .dry_run = o.dry_run,
                 .command_line = cli.command_line()};
    job.say = [&](const std::string& text) { cli.say("{}", text); };
    line.phase("check data", "utt");
    job.checking = [&](int64_t done, int64_t total) {
      line.update(static_cast<double>(done), static_cast<double>(total));
    };
    bool training = false;
    const auto steps = static_cast<double>(job.config.train.steps);
    job.progress = [&](int64_t step, double, const std::string& fields) {
      if (!training) line.phase("train", "step"), training = true;
      line.update(static_cast<double>(step), steps, fields);
    };
    const TrainerReport report = finetune(job);
    line.finish();
    if (o.dry_run) return;
    if (cli.json())
      fmt::print("{{\"run\":\"{}\",\"step\":{},\"best_step\":{},\"{}\":{:.6g},\"skipped\":{}}}\n",
                 job.run, report.step, report.best_step, job.config.eval.select, report.best,
                 report.skipped);
    else
      fmt::print("{}\tstep {}\tbest {} at step {}: {:.4f}\tskipped {}\n", job.run, report.step,
                 job.config.eval.select, report.best_step, report.best, report.skipped);
  });
}
