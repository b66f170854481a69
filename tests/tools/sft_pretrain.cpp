#include <filesystem>
#include <nlohmann/json.hpp>

#include "engine/io/file.h"
#include "models/checkpoint.h"
#include "models/initialise.h"
#include "tests/doctest.h"
#include "tests/run_program.h"
#include "tests/temporary_folder.h"

using namespace sft;
using test::Outcome;
using test::run_program;
namespace fs = std::filesystem;

namespace {

std::string write_model(const test::TemporaryFolder& folder, const std::string& arch = "hubert") {
  Config c;
  c.arch = arch;
  c.layers = 1, c.width = 16, c.ffn = 16, c.heads = 2;
  c.conv_dims.assign(7, 8);
  c.pos_kernel = 4, c.pos_groups = 2;
  c.pretrain.dim = 8;
  TensorMap tensors;
  initialise_missing(tensors, backbone_tensors(c), 1);
  save_model(folder / "m.gguf", "gguf", c, tensors);
  return folder / "m.gguf";
}

}  // namespace

TEST_CASE("sft-pretrain: a run from the built-in speech, and the next one from its hidden states") {
  if (test::absent("sft-pretrain")) return;
  const test::TemporaryFolder folder;
  const std::string model = write_model(folder), first = folder / "first";
  const Outcome o = run_program(
      "sft-pretrain", {model, "--data", "pretrain", "-k", "4", "--steps", "2", "-o", first});
  EXPECT(o.code == 0);
  EXPECT(o.out.find(first + "\tstep 2\tbest loss at step ") == 0);
  EXPECT(o.err.find("targets: 4 clusters of ") != std::string::npos);
  EXPECT(o.err.find("no split dev") == std::string::npos);
  EXPECT(fs::exists(first + "/targets/centroids.safetensors"));
  EXPECT(open_model(first).tensors.find("pretrain.label_emb").shape == Shape{8, 8});

  const Outcome next = run_program(
      "sft-pretrain", {model, "--data", "pretrain", "--targets", "hidden:1", "--teacher", first,
                       "-k", "6", "--steps", "1", "-o", folder / "second", "--json"});
  EXPECT(next.code == 0);
  const auto report = nlohmann::json::parse(next.out);
  EXPECT(report.at("step") == 1);
  EXPECT(report.contains("loss"));
}

TEST_CASE("sft-pretrain: wav2vec 2.0's objective, and the next run from its quantiser") {
  if (test::absent("sft-pretrain")) return;
  const test::TemporaryFolder folder;
  const std::string model = write_model(folder, "wav2vec2"), run = folder / "run";
  const auto contrast = [](const std::string& model, const std::vector<std::string>& more) {
    std::vector<std::string> arguments{model, "--data", "pretrain", "--objective", "wav2vec2"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_program("sft-pretrain", arguments);
  };
  const Outcome dry = contrast(model, {"-o", run, "--dry-run"});
  EXPECT(dry.code == 0);
  EXPECT(dry.err.find("memory: ") != std::string::npos);
  EXPECT(!fs::exists(run));

  const Outcome o = contrast(model, {"--steps", "2", "-o", run});
  EXPECT(o.code == 0);
  EXPECT(o.out.find(run + "\tstep 2\tbest loss at step ") == 0);
  EXPECT(o.err.find("quantiser: a new one") != std::string::npos);
  EXPECT(!fs::exists(run + "/targets"));
  EXPECT(open_model(run).tensors.find("pretrain.vq.codebook").shape == Shape{640, 4});
  const Outcome next = contrast(run, {"--steps", "40", "-o", folder / "next", "--json"});
  EXPECT(next.code == 0);
  EXPECT(next.err.find("quantiser: the model's, which is trained on") != std::string::npos);
  EXPECT(nlohmann::json::parse(next.out).at("step") == 40);
  test::expect_as_planned(next);

  const auto fails = [&](const std::string& model, const std::vector<std::string>& more,
                         const std::string& err) {
    const Outcome o = contrast(model, more);
    EXPECT(o.code == 2);
    EXPECT_MESSAGE(o.err.find("sft-pretrain: error: " + err) == 0, o.err);
    EXPECT(o.out.empty());
  };
  fails(model, {"-k", "7"}, "--clusters belongs to --objective hubert");
  fails(model, {"--set", "pretrain.negatives=0"}, "configuration: pretrain.negatives is not in ");
  const test::TemporaryFolder other;
  const std::string hubert = write_model(other);
  fails(hubert, {}, hubert + ": is a hubert model, the objective wav2vec2 trains a wav2vec2 model");
  EXPECT(contrast(model, {"--print-config"})
             .out.find("pretrain.mask_prob = 0.65  # objective wav2vec2\n") != std::string::npos);
}

TEST_CASE("sft-pretrain: exit codes and messages") {
  if (test::absent("sft-pretrain")) return;
  const test::TemporaryFolder folder;
  const std::string model = write_model(folder), run = folder / "run";
  const auto fails = [&](std::vector<std::string> arguments, int code, const std::string& err) {
    arguments.insert(arguments.end(), {"-o", run, "-q"});
    const Outcome o = run_program("sft-pretrain", arguments);
    EXPECT(o.code == code);
    EXPECT_MESSAGE(o.err.find(err) == 0, o.err);
    EXPECT(o.out.empty());
    EXPECT(!fs::exists(run));
  };
  fails({model}, 2, "sft-pretrain: error: missing --data");
  fails({model, "--data", "pretrain", "--targets", "mel"}, 2,
        "sft-pretrain: error: pretrain.targets: mel (expected mfcc, or hidden:N)");
  fails({model, "--data", "pretrain", "--targets", "hidden:7"}, 2,
        "sft-pretrain: error: pretrain.targets: hidden:7: ");
  fails({model, "--data", "pretrain", "-k", "0"}, 2,
        "sft-pretrain: error: configuration: pretrain.clusters");
  fails({model, "--data", "nowhere.tsv"}, 3, "sft-pretrain: error: nowhere.tsv: ");
  fails({folder / "none.gguf", "--data", "pretrain"}, 3, "sft-pretrain: error: ");
  const Outcome dry =
      run_program("sft-pretrain", {model, "--data", "pretrain", "-o", run, "--dry-run"});
  EXPECT(dry.code == 0);
  EXPECT(dry.err.find("parameters: model ") != std::string::npos);
  EXPECT(dry.err.find("memory: ") != std::string::npos);
  EXPECT(dry.err.find("dry run: nothing is written") != std::string::npos);
  EXPECT(!fs::exists(run));
  EXPECT(run_program("sft-pretrain", {model, "--data", "pretrain", "--print-config", "-k", "7"})
             .out.find("pretrain.clusters = 7  # --clusters\n") != std::string::npos);
}
