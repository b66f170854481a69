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

// A preset of each architecture; transformers: it has a class for it.
struct Family {
  const char* preset;
  bool transformers = true;
};
constexpr Family kFamilies[] = {{"wavlm-tiny"},          {"wav2vec2-large"},
                                {"unispeech-sat-large"}, {"data2vec-audio-base"},
                                {"distilhubert"},        {"decoar2", false}};

Json succeeds(const std::string& tool, std::vector<std::string> arguments) {
  arguments.push_back("--json");
  const Outcome o = run_program(tool, arguments);
  INFO(tool, ": ", o.err);
  REQUIRE(o.code == 0);
  return Json::parse(o.out);
}

std::string make_model(const test::TemporaryFolder& folder, const Family& family) {
  const Config config = preset(family.preset);
  const std::string path = folder / "base.gguf";
  std::vector<std::string> arguments = {family.preset, "-o", path};
  std::vector<std::string> settings = {"block_count=2", "embedding_length=32",
                                       "feed_forward_length=64", "attention.head_count=4",
                                       "pos_conv.groups=4"};
  if (!config.log_mel()) settings.push_back("conv.dims=16,16,16,16,16,16,16");
  for (const std::string& setting : settings)
    arguments.insert(arguments.end(), {"--set", config.arch + "." + setting});
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
    INFO(family.preset);
    const test::TemporaryFolder folder;
    const std::string digits = find_corpus("digits", corpora_folder());
    const std::string base = make_model(folder, family), run = folder / "run",
                      merged = folder / "merged.gguf";
    EXPECT(succeeds("sft-info", {base}).at("config").at("general.architecture") ==
           preset(family.preset).arch);
    succeeds("sft-train", {base, "--ctc", "digits", "-o", run, "--head", "linear", "--steps", "6",
                           "--set", "batch.utterances=2", "--set", "train.head_only=0"});
    succeeds("sft-merge", {base, run, "--alpha", "0.5", "-o", merged});
    EXPECT(id_of(run) != id_of(base));
    EXPECT(id_of(merged) != id_of(base));
    EXPECT(id_of(merged) != id_of(run));
    const Json probed = succeeds("sft-probe", {merged, "--task", "sid", "--data", digits, "--steps",
                                               "3", "--lr", "1e-3", "-q"});
    const int64_t states = open_model(merged).config.states();
    EXPECT(std::ssize(probed.at("layer_shares")) == states);

    std::string copy = folder / "copy.safetensors";
    if (family.transformers) copy = folder / "hf";
    succeeds("sft-convert", {merged, "-o", copy});
    EXPECT(id_of(copy) == id_of(merged));
    const Json extracted = succeeds("sft-extract", {copy, read_manifest(digits).rows[0].file,
                                                    "--states", "all", "-o", folder / "states"});
    EXPECT(extracted.at("utterances") == 1);
  }
}
