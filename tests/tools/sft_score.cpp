#include <sys/wait.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/io/file.h"
#include "tests/doctest.h"
#include "tests/run_program.h"
#include "tests/temporary_folder.h"

using namespace sft;
using test::Outcome;
using test::run_program;

namespace {

struct Files {
  test::TemporaryFolder folder;
  std::string ref = folder / "ref.trn", hyp = folder / "hyp.trn";
  Files() {
    std::ofstream(ref) << "THE CAT SAT (u-1)\nHELLO (u-2)\n";
    std::ofstream(hyp) << "(u-2)\nTHE DOG SAT ON (u-1)\n";
  }
};

}  // namespace

TEST_CASE("sft-score: the rate, each utterance, alignments") {
  if (test::absent("sft-score")) return;
  const Files f;
  const Outcome plain = run_program("sft-score", {f.ref, f.hyp});
  EXPECT(plain.code == 0);
  EXPECT(plain.err.empty());
  EXPECT(plain.out == "WER 75.00 % (3 edits / 4 reference: 1 sub, 1 del, 1 ins; 2 utterances)\n");
  EXPECT(run_program("sft-score", {f.ref, f.hyp, "-vv"})
             .out.find("u-1\t3\t1\t0\t1\nREF: THE CAT SAT **\nHYP: THE DOG SAT ON\n") !=
         std::string::npos);
  const Outcome json = run_program("sft-score", {f.ref, f.hyp, "--json", "--cer", "-v"});
  const auto report = nlohmann::json::parse(json.out);
  EXPECT(report.at("metric") == "CER");
  EXPECT(report.at("reference") == 16);
  EXPECT(report.at("each").size() == 2);
}

TEST_CASE("sft-score: exit codes and messages") {
  if (test::absent("sft-score")) return;
  const Files f;
  const auto both = [&](std::vector<std::string> arguments, int code, const std::string& err) {
    const Outcome o = run_program("sft-score", arguments);
    EXPECT(o.code == code);
    EXPECT(o.err == err);
    EXPECT(o.out.empty());
  };
  both({f.ref}, 2, "sft-score: error: missing HYP.trn\nhint: see sft-score --help\n");
  both({f.ref, f.hyp, "--cre"}, 2,
       "sft-score: error: unknown option --cre\nhint: did you mean --cer?\n");
  std::ofstream(f.hyp) << "A (u-1)\n";
  both({f.ref, f.hyp}, 3,
       "sft-score: error: ids differ: 1 (u-2) have no hypothesis, 0 have no reference\n");
  std::ofstream(f.hyp) << "A (u-1)\nB (u-2\n";
  both({f.ref, f.hyp}, 3,
       fmt::format("sft-score: error: {}:2: B (u-2 (expected words, then an id in parentheses)\n",
                   f.hyp));
  const Outcome json = run_program("sft-score", {f.ref, f.hyp, "--json"});
  EXPECT(json.code == 3);
  EXPECT(json.out.empty());
  EXPECT(nlohmann::json::parse(json.err).at("error").at("kind") == "input");
}

TEST_CASE("sft-score: help and version are data") {
  if (test::absent("sft-score")) return;
  const Outcome help = run_program("sft-score", {"--help"});
  EXPECT(help.code == 0);
  EXPECT(help.err.empty());
  for (const char* option : {"--cer", "--json", "--threads", "--seed", "--quiet", "--verbose",
                             "--version", "REF.trn", "HYP.trn"})
    EXPECT(help.out.find(option) != std::string::npos);
  EXPECT(run_program("sft-score", {"--version"}).out.find("sft-score ") == 0);
}

TEST_CASE("sft-score: standard output that is full, closed, or not read") {
  if (test::absent("sft-score")) return;
  const test::TemporaryFolder folder;
  const std::string tool =
      "'" + test::program_path("sft-score") + "' --help 2>'" + (folder / "err") + "'";
  const auto code = [&](const std::string& command) {
    return WEXITSTATUS(std::system(command.c_str()));
  };
  EXPECT(code(tool + " >/dev/full") == 4);
  EXPECT(read_text(folder / "err") ==
         "sft-score: error: standard output: No space left on device\n");
  EXPECT(code(tool + " >&-") == 0);
  // the reader has gone before the first byte
  const std::string rc = folder / "rc";
  code("(sleep 0.1; " + tool + "; echo $? >'" + rc + "') | true");
  EXPECT(read_text(rc) == "141\n");
  EXPECT(read_text(folder / "err") == "");
}
