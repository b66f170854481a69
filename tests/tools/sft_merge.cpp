#include <nlohmann/json.hpp>

#include "engine/io/directory.h"
#include "tests/doctest.h"
#include "tests/merge/tiny_models.h"
#include "tests/run_program.h"

using namespace sft;
using test::Outcome;
using test::run_program;
using test::TinyModels;

TEST_CASE("sft-merge: a run into a base, as the manual has it") {
  if (test::absent("sft-merge")) return;
  const TinyModels m;
  const std::string run = m.folder / "ted", out = m.folder / "speechft.gguf";
  make_directory(run + "/ckpt/step-00000002");
  write_text(run + "/run.toml", "");
  write_text(run + "/done", "");
  write_text(run + "/ckpt/BEST", "step-00000002\n");
  std::filesystem::copy(m.tuned[0], run + "/ckpt/step-00000002/model.gguf");
  const Outcome o = run_program("sft-merge", {m.base, run, "--alpha", "0.25", "-o", out});
  EXPECT(o.code == 0);
  EXPECT(o.err.empty());
  EXPECT(o.out.find("\ntotal ") != std::string::npos);
  EXPECT(o.out.find(out + ": alpha 0.25, |merged - base| / |difference| = 0.25000") !=
         std::string::npos);
  const Metadata says = open_stored_model(out).config.provenance;
  EXPECT(says.strings("sft.merge.inputs").back().ends_with(" ted"));
}

TEST_CASE("sft-merge: a sweep into a folder, as JSON") {
  if (test::absent("sft-merge")) return;
  const TinyModels m;
  const Outcome o =
      run_program("sft-merge", {m.base, m.tuned[0], m.tuned[1], "--alpha", "0:1:0.5", "--tensors",
                                "conv.*=0", "--json", "-o", m.folder / "sweep/"});
  REQUIRE(o.code == 0);
  const auto report = nlohmann::json::parse(o.out);
  EXPECT(report.at("tuned").size() == 2);
  EXPECT(report.at("parts").back().at("name") == "total");
  REQUIRE(report.at("outputs").size() == 3);
  EXPECT(report.at("outputs")[1].at("path") == m.folder / "sweep/base-tuned0+tuned1-a0.50.gguf");
  for (const auto& output : report.at("outputs"))
    EXPECT(std::filesystem::exists(output.at("path").get<std::string>()));
}

TEST_CASE("sft-merge: exit codes and messages") {
  if (test::absent("sft-merge")) return;
  const TinyModels m;
  const auto error = [&](std::vector<std::string> arguments, int code, const std::string& text) {
    const Outcome o = run_program("sft-merge", arguments);
    EXPECT(o.code == code);
    EXPECT_MESSAGE(o.err.find(text) != std::string::npos, o.err);
    EXPECT(o.out.empty());
  };
  error({"--alpha", "0.25"}, 2,
        "sft-merge: error: missing BASE\n"
        "hint: as in sft-merge hubert.gguf runs/ted --alpha 0.25 -o speechft.gguf\n");
  error({m.base, "--alpha", "0.25"}, 2, "missing TUNED");
  error({m.base, m.tuned[0], "--alpha", "quarter"}, 2, "--alpha: 'quarter' (expected numbers)");
  error({m.base, m.tuned[0], "--tensors", "conv.*"}, 2,
        "--tensors: 'conv.*' (expected GLOB=ALPHA)");
  error({m.base, m.folder / "none.gguf"}, 3, "none.gguf: cannot open");
  error({m.base, m.base, "-o", m.folder / "x.gguf"}, 3, "would be the base");
  error({m.base, m.tuned[0], "-o", m.base}, 2, "base.gguf: exists already\nhint: --force");
  error({m.base, m.tuned[0], "-o", m.folder / "no/such/x.gguf"}, 4, "cannot write");
}

TEST_CASE("sft-merge: --head-from takes a head alone, which is nothing else's model") {
  if (test::absent("sft-merge") || test::absent("sft-convert")) return;
  const TinyModels m;
  const std::string whole = m.folder / "run.gguf", head = m.folder / "head.safetensors",
                    out = m.folder / "merged", encoder = m.folder / "encoder.gguf";
  Config config = m.tuned_config();
  config.task = {.kind = "ctc", .head = "linear", .units = {"<pad>", "A", "|"}};
  ModelFile tuned = open_model(m.tuned[0]);
  const int64_t width = config.width;
  tuned.tensors.add_owned("task.out.weight", {3, width},
                          std::vector<float>(static_cast<size_t>(3 * width), 0.5f));
  tuned.tensors.add_owned("task.out.bias", {3}, {1, 2, 3});
  save_model(whole, "gguf", config, tuned.tensors);
  const Outcome o = run_program("sft-convert", {whole, "--part", "head", "-o", head});
  INFO(o.err);
  REQUIRE(o.code == 0);
  EXPECT(o.out.find("loaded 2/") != std::string::npos);
  EXPECT(o.out.find("tensors): left out\n") != std::string::npos);
  EXPECT(o.out.ends_with("head.safetensors: safetensors, 2 tensors\n"));
  REQUIRE(run_program("sft-merge", {m.base, m.tuned[1], "--head-from", head, "-o", out}).code == 0);
  const ModelFile merged = open_model(out);  // a folder of HubertForCTC
  EXPECT(merged.format == "hf");
  EXPECT(merged.config.task.units == config.task.units);
  EXPECT(merged.tensors.find("task.out.bias").f32()[2] == 3);
  EXPECT(!is_head_alone(merged.config));
  REQUIRE(run_program("sft-convert", {whole, "--part", "encoder", "-o", encoder}).code == 0);
  EXPECT(open_model(encoder).config.task.kind.empty());
  const auto refuses = [](const std::string& program, std::vector<std::string> arguments, int code,
                          const std::string& text) {
    const Outcome r = run_program(program, arguments);
    EXPECT(r.code == code);
    EXPECT_MESSAGE(r.err.find(text) != std::string::npos, r.err);
  };
  const std::string x = m.folder / "x.gguf";
  refuses("sft-merge", {m.base, head, "-o", x}, 3,
          "head.safetensors: is a head alone (expected a m");
  refuses("sft-merge", {m.base, m.tuned[0], "--head-from", encoder, "-o", x}, 3,
          "has no task head");
  refuses("sft-convert", {encoder, "--part", "head", "-o", x}, 3, "encoder.gguf: has no task head");
  refuses("sft-convert", {whole, "--part", "head", "-o", m.folder / "x"}, 2, "only GGUF and safet");
  refuses("sft-convert", {whole, "--part", "tail", "-o", x}, 2,
          "--part: tail (expected model, encoder, head)");
  EXPECT(!std::filesystem::exists(x));
}
