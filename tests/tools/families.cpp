// Every family of encoders through all tools, on the built-in corpus.
#include <filesystem>
#include <nlohmann/json.hpp>

#include "models/checkpoint.h"
#include "tests/doctest.h"
#include "tests/run_program.h"
#include "tests/temporary_folder.h"
#include "train/corpus.h"
#include "train/manifest.h"

using namespace sft;
using test::Outcome;
using test::run_program;
using Json = nlohmann::json;

namespace {

// A preset of `arch`, and settings that make it smaller still.
struct Family {
  const char *preset, *arch;
};
constexpr Family kFamilies[] = {{"wavlm-tiny", "wavlm"}};

Json succeeds(const std::string& tool, std::vector<std::string> arguments) {
  arguments.push_back("--json");
  const Outcome o = run_program(tool, arguments);
  INFO(tool, ": ", o.err);
  REQUIRE(o.code == 0);
  return Json::parse(o.out);
}

std::string make_model(const test::TemporaryFolder& folder, const Family& family) {
  const std::string path = folder / "base.gguf", prefix = std::string(family.arch) + ".";
  std::vector<std::string> arguments = {family.preset, "-o", path};
  for (const char* setting : {"block_count=2", "embedding_length=32", "feed_forward_length=64",
                              "conv.dims=16,16,16,16,16,16,16"})
    arguments.insert(arguments.end(), {"--set", prefix + setting});
  succeeds("sft-init", arguments);
  return path;
}

std::string id_of(const std::string& path) { return model_id(open_model(path).tensors); }

}  // namespace

TEST_CASE("families: made, trained, merged, probed, extracted and converted") {
  for (const char* tool : {"sft-init", "sft-train", "sft-merge", "sft-probe", "sft-extract",
                           "sft-convert", "sft-info"})
    if (test::absent(tool)) return;
  for (const Family& family : kFamilies) {
    const test::TemporaryFolder folder;
    const std::string digits = find_corpus("digits", corpora_folder());
    const std::string base = make_model(folder, family), run = folder / "run",
                      merged = folder / "merged.gguf";
    EXPECT(succeeds("sft-info", {base}).at("config").at("general.architecture") == family.arch);
    succeeds("sft-train", {base, "--ctc", "digits", "-o", run, "--head", "linear", "--steps", "6",
                           "--set", "batch.utterances=2", "--set", "train.head_only=0"});
    succeeds("sft-merge", {base, run, "--alpha", "0.5", "-o", merged});
    EXPECT(id_of(run) != id_of(base));
    EXPECT(id_of(merged) != id_of(base));
    EXPECT(id_of(merged) != id_of(run));
    const Json probed = succeeds("sft-probe", {merged, "--task", "sid", "--data", digits, "--steps",
                                               "3", "--lr", "1e-3", "-q"});
    EXPECT(probed.at("layer_shares").size() == 3);

    const std::string hf = folder / "hf";
    succeeds("sft-convert", {merged, "-o", hf});
    EXPECT(id_of(hf) == id_of(merged));
    const Json extracted = succeeds("sft-extract", {hf, read_manifest(digits).rows[0].file,
                                                    "--states", "all", "-o", folder / "states"});
    EXPECT(extracted.at("utterances") == 1);
  }
}
