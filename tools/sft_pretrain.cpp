// sft-pretrain: HuBERT's masked prediction of clusters, or wav2vec 2.0's contrastive pre-training
// (docs/sft-pretrain.md).
#include "tools/cli.h"
#include "tools/training.h"
#include "train/corpus.h"
#include "train/pretrain/pretrain.h"

using namespace sft;

int main(int argc, char** argv) {
  return run_tool(argc, argv, "sft-pretrain", [](Cli& cli) {
    TrainingOptions options;
    std::string data, objective = "hubert", targets = "mfcc", teacher;
    int64_t clusters = 100;
    cli.about(
        "Trains MODEL on speech without labels: frames are hidden, and it tells from the rest\n"
        "which k-means cluster each belongs to (hubert), or each from other frames of the same\n"
        "utterance (wav2vec2). Writes a run, whose best checkpoint is a model.");
    options.add_to(cli, "pretrain");
    cli.option("--data", data, "a manifest, or a corpus by name (pretrain: the built-in speech)");
    cli.option("--objective", objective, "hubert, or wav2vec2");
    cli.option("--targets", targets, "what is clustered: mfcc, or hidden:N of the teacher");
    cli.option("--teacher", teacher, "the model of the hidden states (default: MODEL)");
    cli.option("-k,--clusters", clusters, "clusters");
    cli.parse();
    if (data.empty()) fail(Kind::usage, "missing --data (expected a manifest, or a corpus)");

    ConfigBuilder builder("pretrain");
    options.apply(cli, builder, "pretrain");
    builder.set("data.manifest", find_corpus(data), "--data");
    if (cli.given("--objective")) builder.set("pretrain.objective", objective, "--objective");
    const bool contrastive = builder.config().pretrain.objective == "wav2vec2";
    if (contrastive) builder.set_default("pretrain.mask_prob", "0.65", "objective wav2vec2");
    for (const char* flag : {"--targets", "--teacher", "--clusters"})
      if (contrastive && cli.given(flag))
        fail(Kind::usage, "{} belongs to --objective hubert: wav2vec2 makes its own targets", flag);
    if (cli.given("--targets")) builder.set("pretrain.targets", targets, "--targets");
    if (cli.given("--teacher")) builder.set("pretrain.teacher", teacher, "--teacher");
    if (cli.given("--clusters"))
      builder.set("pretrain.clusters", std::to_string(clusters), "--clusters");
    run_training(cli, options, builder, "pretrain", pretrain);
  });
}
