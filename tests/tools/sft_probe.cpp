#include <filesystem>
#include <nlohmann/json.hpp>

#include "engine/io/file.h"
#include "models/checkpoint.h"
#include "models/initialise.h"
#include "tests/doctest.h"
#include "tests/run_program.h"
#include "tests/temporary_folder.h"
#include "train/corpus.h"
#include "train/manifest.h"

using namespace sft;
using test::Outcome;
using test::run_program;

namespace {

// A random model of one layer, and every fifth row of the built-in digits.
struct Files {
  test::TemporaryFolder folder;
  std::string model = folder / "random.gguf", data = folder / "digits.tsv";

  Files() {
    Config config = preset("hubert-tiny");
    config.layers = 1;
    TensorMap tensors;
    initialise_missing(tensors, backbone_tensors(config), 1);
    save_model(model, "gguf", config, tensors);
    Manifest all = read_manifest(find_corpus("digits", corpora_folder()));
    Manifest some = all;
    some.rows.clear();
    for (size_t i = 0; i < all.rows.size(); ++i) {
      all.rows[i].values[all.column("path")] = all.rows[i].file;
      if (i % 5 == 0) some.rows.push_back(all.rows[i]);
    }
    write_text(data, manifest_text(some));
  }
};

}  // namespace

TEST_CASE("sft-probe: a run, its report, the same bits again") {
  if (test::absent("sft-probe")) return;
  const Files f;
  const std::vector<std::string> arguments{f.model,   "--task",  "sid",    "--data",
                                           f.data,    "--steps", "20",     "--lr-sweep",
                                           "--seeds", "2",       "--json", "-q"};
  std::vector<std::string> with_run = arguments;
  with_run.insert(with_run.end(), {"-o", f.folder / "runs/sid"});
  const Outcome first = run_program("sft-probe", with_run);
  REQUIRE(first.code == 0);
  EXPECT(first.err.empty());
  const auto report = nlohmann::json::parse(first.out);
  EXPECT(report == nlohmann::json::parse(read_text(f.folder / "runs/sid/probe.json")));
  EXPECT(report.at("metric") == "accuracy");
  EXPECT(report.at("outputs").size() == 5);
  EXPECT(report.at("trials").size() == 5);
  EXPECT(report.at("seeds").size() == 2);
  EXPECT(report.at("layer_shares").size() == 2);
  EXPECT(report.at("chance").get<double>() >= 0.2);
  EXPECT(std::filesystem::exists(f.folder / "runs/sid/record.json"));
  EXPECT(std::filesystem::exists(f.folder / "runs/sid/run.toml"));

  auto again = nlohmann::json::parse(run_program("sft-probe", arguments).out), before = report;
  again.erase("seconds"), before.erase("seconds");
  EXPECT(again == before);

  const Outcome refused = run_program("sft-probe", with_run);
  EXPECT(refused.code == 2);
  EXPECT(refused.out.empty());
}

TEST_CASE("sft-probe: the table") {
  if (test::absent("sft-probe")) return;
  const Files f;
  const Outcome o = run_program("sft-probe", {f.model, "--task", "pr", "--data", f.data, "--steps",
                                              "2", "--states", "last", "--head", "linear"});
  EXPECT(o.code == 0);
  EXPECT(o.out.starts_with("lr\tseed\tstep\tdev per %\ttest per %\n0.001\t0\t"));
  EXPECT(o.out.ends_with("weights of states\t1: 1.000\n"));
  EXPECT(o.err.find("sft-probe: cache of hidden states: ") != std::string::npos);
}

TEST_CASE("sft-probe: exit codes and messages") {
  if (test::absent("sft-probe")) return;
  const Files f;
  const auto fails = [&](std::vector<std::string> arguments, int code, const std::string& part) {
    const Outcome o = run_program("sft-probe", arguments);
    INFO(o.err);
    EXPECT(o.code == code);
    EXPECT(o.err.find(part) != std::string::npos);
    EXPECT(o.out.empty());
  };
  fails({f.model}, 2, "missing --task");
  fails({f.model, "--task", "asv"}, 2, "--task: asv");
  fails({f.model, "--task", "sid", "--lr", "1", "--lr-sweep"}, 2, "exclude each other");
  fails({f.model, "--task", "sid", "--data", f.data, "--states", "2"}, 2,
        "'2' (expected all, last");
  fails({f.model, "--task", "sid", "--data", f.data, "--set", "probe.step=3"}, 2,
        "there is no key probe.step");
  fails({f.model, "--task", "sid", "--data", f.data, "--label", "speakr"}, 3, "speakr");
  fails({f.model, "--task", "er", "--data", f.data, "-o", f.folder / "run"}, 3, "emotion");
  EXPECT(!std::filesystem::exists(f.folder / "run"));  // nothing half-written
  fails({f.folder / "none.gguf", "--task", "sid", "--data", f.data}, 3, "none.gguf");
}
