#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "engine/io/file.h"
#include "tests/doctest.h"
#include "tests/run_program.h"
#include "tests/temporary_folder.h"

using namespace sft;
using test::Outcome;
using test::run_program;

namespace {

bool absent() {
  if (!test::program_path("sft-bench").empty()) return false;
  test::skip("sft-bench was not built");
  return true;
}

nlohmann::json report_of(std::vector<std::string> arguments) {
  arguments.insert(arguments.end(), {"--json", "-q"});
  const Outcome o = run_program("sft-bench", arguments);
  EXPECT_MESSAGE(o.code == 0, o.err);
  return nlohmann::json::parse(o.out);
}

}  // namespace

TEST_CASE("sft-bench: ceilings and an op, forward and backward") {
  if (absent()) return;
  const auto report = report_of({"ops", "--op", "layer_norm", "--repeats", "2"});
  for (const char* rate : {"fma_one", "fma_all", "read", "copy"})
    EXPECT(report.at("ceilings").at(rate).get<double>() > 0);
  const auto& kernels = report.at("kernels");
  REQUIRE(kernels.size() == 4);  // layer_norm_plain too
  EXPECT(kernels[0].at("name") == "layer_norm[3x2415; 768]");
  EXPECT(kernels[1].at("name") == "layer_norm[3x2415; 768] backward");
  for (const auto& kernel : kernels) {
    EXPECT(kernel.at("bytes").get<double>() >= 8.0 * 2415 * 768);
    EXPECT(kernel.at("us").get<double>() > 0);
  }
}

TEST_CASE("sft-bench: a model extracts and trains; its memory is within the plan") {
  if (absent()) return;
  const auto extract = report_of({"model", "hubert-tiny", "--mix", "fixed:1", "--repeats", "2"});
  EXPECT(extract.at("workload").at("id") == "extract/hubert-tiny/fixed:1/1/all");
  EXPECT(extract.at("result").at("as_per_s").at("median").get<double>() > 0);
  const auto train = report_of({"model", "hubert-tiny", "--task", "train-full", "--mix", "mixed",
                                "--batch", "2", "--head", "linear+cached", "--repeats", "2"});
  EXPECT(train.at("workload").at("id") == "train-full/hubert-tiny/mixed/2/linear+cached");
  EXPECT(train.at("workload").at("audio_s") == 8);
  std::set<std::string> names;
  for (const auto& kernel : train.at("kernels")) names.insert(kernel.at("name"));
  for (const char* name : {"ctc", "ffn.backward", "attention.backward", "adam", "grad_norm"})
    EXPECT_MESSAGE(names.count(name), name);
  EXPECT(names.count("conv_stem") == 0);  // kept
  const auto& result = train.at("result");
  EXPECT(result.at("as_per_s").at("median").get<double>() *
             result.at("step_ms").at("median").get<double>() ==
         doctest::Approx(8e3));
  double in_kernels = 0;  // microseconds
  for (const auto& kernel : train.at("kernels")) in_kernels += kernel.at("us").get<double>();
  EXPECT(in_kernels > 0);
  EXPECT(in_kernels <= 1e3 * result.at("step_ms").at("max").get<double>());
  // the program itself takes some; a small model hardly more
  EXPECT(train.at("result").at("mem_bytes").get<double>() <
         1.1 * train.at("result").at("planned_bytes").get<double>() + 64e6);
}

TEST_CASE("sft-bench: head only leaves the encoder without a backward") {
  if (absent()) return;
  const auto train = report_of(
      {"model", "hubert-tiny", "--task", "train-head", "--mix", "fixed:1", "--repeats", "1"});
  std::set<std::string> names;
  for (const auto& kernel : train.at("kernels")) names.insert(kernel.at("name"));
  EXPECT(names.count("lstm.backward") == 1);
  EXPECT(names.count("attention.backward") == 0);
}

TEST_CASE("sft-bench: compare finds what became slower") {
  if (absent()) return;
  const test::TemporaryFolder folder;
  const std::string before = folder / "a.json", after = folder / "b.json";
  const auto write = [](const std::string& path, double us, const char* name) {
    std::ofstream(path) << nlohmann::json{{"schema", 1},
                                          {"command", "ops"},
                                          {"host", {{"cpu", "x"}, {"threads", 2}}},
                                          {"kernels", {{{"name", name}, {"us", us}}}}};
  };
  write(before, 100, "linear"), write(after, 104, "linear");
  const Outcome same = run_program("sft-bench", {"compare", before, after, "--fail-over", "5%"});
  EXPECT(same.code == 0);
  EXPECT(same.out == "linear\t100.0\t104.0\t+4.0 %\n");
  write(after, 106, "linear");
  EXPECT(run_program("sft-bench", {"compare", before, after}).code == 0);
  const Outcome slower = run_program("sft-bench", {"compare", before, after, "--fail-over", "5%"});
  EXPECT(slower.code == 6);
  EXPECT(slower.err.find("slower by more than 5%") != std::string::npos);
  write(after, 50, "ffn");
  EXPECT(run_program("sft-bench", {"compare", before, after, "--fail-over", "5"}).code == 6);
  std::ofstream(after) << "{}";
  EXPECT(run_program("sft-bench", {"compare", before, after}).code == 3);
}

TEST_CASE("sft-bench: exit codes and messages") {
  if (absent()) return;
  const auto refused = [](std::vector<std::string> arguments, const std::string& what) {
    const Outcome o = run_program("sft-bench", arguments);
    EXPECT(o.code == 2);
    EXPECT_MESSAGE(o.err.find(what) != std::string::npos, o.err);
    EXPECT(o.out.empty());
  };
  refused({"opps"}, "did you mean ops?");
  refused({"ops", "--op", "nothing"}, "no op has such a name");
  refused({"ops", "--repeats", "0"}, "expected at least 1");
  refused({"model", "hubert-tiny", "--mix", "fixed:x"}, "expected fixed:SECONDS or mixed");
  refused({"model", "hubert-tiny", "--head", "lstm", "--task", "train-full"}, "expected linear");
  refused({"compare", "a", "b", "--fail-over", "few"}, "expected a percentage");
}
