// sft-train: stable fine-tuning of an encoder on one task (docs/sft-train.md).
#include <filesystem>

#include "tools/cli.h"
#include "tools/training.h"
#include "train/corpus.h"
#include "train/finetune.h"

using namespace sft;

namespace {

struct Options {
  TrainingOptions training;
  std::string ctc, classify, label, recipe = "stable", head, data;

  void parse(Cli& cli) {
    cli.about(
        "Fine-tunes MODEL on one task: first its new head alone, then head and encoder, with the\n"
        "convolutions fixed (stable fine-tuning). Writes a run; sft-merge takes it from there.");
    training.add_to(cli, "TASK");
    cli.option("--ctc", ctc, "recognise speech: a manifest, or a corpus by name (digits, ted)");
    cli.option("--classify", classify, "classify utterances: a manifest, or a corpus by name");
    cli.option("--label", label, "the column of classes (with --classify)");
    cli.option("--data", data, "where corpora lie (default: $SFT_DATA, ./data, the built-in ones)");
    cli.choice("--recipe", recipe, {"stable", "full"}, "full: no head-only phase");
    cli.option("--head", head, "CTC: blstm, linear or projector");
    cli.parse();
    if (ctc.empty() == classify.empty())
      fail(Kind::usage, "give one task: --ctc WHAT or --classify WHAT");
    if (!classify.empty() && label.empty())
      fail(Kind::usage, Hint{"--label speaker"}, "--classify needs the column of its classes");
  }

  std::string corpus() const { return ctc.empty() ? classify : ctc; }
  std::string task() const {
    return std::filesystem::path(ctc.empty() ? label : ctc).stem().string();
  }
};

ConfigBuilder build_config(const Cli& cli, const Options& o) {
  ConfigBuilder builder(o.ctc.empty() ? "classify" : "ctc");
  o.training.apply(cli, builder, o.task());
  if (cli.given("--recipe")) builder.set("train.recipe", o.recipe, "--recipe");
  builder.set("data.manifest", find_corpus(o.corpus(), o.data), "command line");
  if (!o.label.empty()) builder.set("data.label", o.label, "--label");
  if (!o.head.empty()) builder.set("head.kind", o.head, "--head");
  if (builder.config().data.units == "phones")
    builder.set_default("eval.select", "per", "data.units");
  return builder;
}

}  // namespace

int main(int argc, char** argv) {
  return run_tool(argc, argv, "sft-train", [](Cli& cli) {
    Options options;
    options.parse(cli);
    run_training(cli, options.training, build_config(cli, options), options.task(), finetune);
  });
}
