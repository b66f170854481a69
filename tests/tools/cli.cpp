#include "tools/cli.h"

#include <omp.h>

#include "tests/doctest.h"

using namespace sft;

namespace {

struct Values {
  std::string input, output = "out.trn", math = "exact";
  std::optional<std::string> second;
  std::vector<std::string> freeze;
  double alpha = 0.25;
  int64_t steps = 10;
  bool force = false;
};

Values parse(std::vector<std::string> arguments) {
  Values v;
  Cli cli("sft-toy", std::move(arguments));
  cli.argument("INPUT", v.input, "what to read");
  cli.argument("SECOND", v.second, "may be missing");
  cli.option("-o,--output", v.output, "what to write");
  cli.option("--freeze", v.freeze, "a pattern");
  cli.option("--alpha", v.alpha, "how far");
  cli.option("--steps", v.steps, "how long");
  cli.choice("--math", v.math, {"exact", "fast16", "bf16"}, "how exactly");
  cli.flag("--force", v.force, "replace");
  cli.parse();
  return v;
}

Error usage_error(std::vector<std::string> arguments) {
  const Error e = test::error_of([&] { parse(std::move(arguments)); });
  EXPECT(e.kind == Kind::usage);
  return e;
}

}  // namespace

TEST_CASE("cli: the last argument may take several, with options among them") {
  std::string first;
  std::vector<std::string> rest;
  double alpha = 0;
  Cli cli("sft-toy", {"a", "b", "--alpha", "0.5", "c", "d"});
  cli.example("sft-toy a b");
  cli.argument("FIRST", first, "one");
  cli.argument("REST", rest, "one or more");
  cli.option("--alpha", alpha, "how far");
  cli.parse();
  EXPECT(first == "a");
  EXPECT(rest == std::vector<std::string>{"b", "c", "d"});
  EXPECT(alpha == 0.5);
}

TEST_CASE("cli: options, arguments, defaults") {
  const Values v = parse({"in.gguf", "--alpha", "-0.5", "-o", "x", "--freeze", "conv.*", "--freeze",
                          "enc.0.*", "--math=bf16", "--force", "--seed", "7"});
  EXPECT(v.input == "in.gguf");
  EXPECT(!v.second.has_value());
  EXPECT(v.alpha == -0.5);
  EXPECT(v.output == "x");
  EXPECT(v.freeze == std::vector<std::string>{"conv.*", "enc.0.*"});
  EXPECT(v.math == "bf16");
  EXPECT(v.force);
  EXPECT(v.steps == 10);
  EXPECT(parse({"a", "-"}).second == "-");
  EXPECT(parse({"--", "-strange-name"}).input == "-strange-name");
}

TEST_CASE("cli: what every tool has") {
  const int before = omp_get_max_threads();
  Cli cli("sft-toy", {"--threads", "3", "--seed", "18446744073709551615", "-q", "-vv", "--json"});
  cli.parse();
  EXPECT(cli.threads() == 3);
  EXPECT(omp_get_max_threads() == 3);
  EXPECT(cli.seed() == UINT64_MAX);
  EXPECT(cli.quiet());
  EXPECT(cli.verbosity() == 2);
  EXPECT(cli.json());
  EXPECT(cli.given("--seed"));
  EXPECT(!cli.given("--version"));
  omp_set_num_threads(before);
}

TEST_CASE("cli: usage errors name the option and the nearest one") {
  const Error unknown = usage_error({"in", "--aplha", "1"});
  EXPECT(unknown.message == "unknown option --aplha");
  EXPECT(unknown.hint == "did you mean --alpha?");
  EXPECT(usage_error({"in", "--outptu=x"}).hint == "did you mean --output?");
  EXPECT(usage_error({}).message == "missing INPUT");
  EXPECT(usage_error({"a", "b", "c"}).message == "unexpected argument c");
  EXPECT(usage_error({"a", "--alpha", "x"}).message == "--alpha: 'x' (expected a number)");
  EXPECT(usage_error({"a", "--alpha", "nan"}).message == "--alpha: nan (expected a finite number)");
  EXPECT(usage_error({"a", "--steps", "1.5"}).message ==
         "--steps: '1.5' (expected a whole number)");
  EXPECT(usage_error({"a", "--steps", "1", "--steps", "2"}).message ==
         "--steps was given 2 times (expected once)");
  EXPECT(usage_error({"a", "--seed", "-1"}).message ==
         "--seed: '-1' (expected a whole number, not negative)");
  const Error choice = usage_error({"a", "--math", "fast"});
  EXPECT(choice.message == "--math: fast (expected exact, fast16, bf16)");
  EXPECT(choice.hint == "did you mean fast16?");
  EXPECT(usage_error({"a", "--alpha"}).message.find("--alpha") == 0);
}

TEST_CASE("cli: commands come first") {
  const std::vector<std::pair<std::string, std::string>> commands = {
      {"check", "reads everything"}, {"import ted", "makes a manifest"}};
  Cli import("sft-data", {"import", "ted", "DIR"});
  EXPECT(import.command(commands) == "import ted");
  EXPECT(import.program() == "sft-data import ted");
  std::string dir;
  import.argument("DIR", dir, "corpus");
  import.parse();
  EXPECT(dir == "DIR");

  Cli wrong("sft-data", {"chek", "x"});
  const Error e = test::error_of([&] { wrong.command(commands); });
  EXPECT(e.kind == Kind::usage);
  EXPECT(e.message == "chek is not a command (expected check, import ted)");
  EXPECT(e.hint == "did you mean check?");
  Cli none("sft-data", {});
  EXPECT(test::error_of([&] { none.command(commands); }).kind == Kind::usage);
}

TEST_CASE("cli: progress is one line, in place on a terminal, rare elsewhere") {
  std::string out;
  double now = 100;
  const auto write = [&](std::string_view text) { out += text; };
  SUBCASE("terminal") {
    Progress progress(write, true, [&] { return now; });
    progress.phase("train", "utt");
    now += 10;
    progress.update(0, 200);
    progress.update(1, 200);  // too soon after the last
    now += 10;
    progress.update(100, 200, "loss 0.412");
    EXPECT(out ==
           "\r\x1b[Ktrain 0/200 0.0%"
           "\r\x1b[Ktrain 100/200 50.0% | 5 utt/s | loss 0.412 | eta 20s");
    progress.finish();
    EXPECT(out.back() == '\n');
  }
  SUBCASE("log file") {
    Progress progress(write, false, [&] { return now; });
    progress.phase("check");
    for (int i = 0; i <= 70; ++i, now += 1) progress.update(i, 70);
    progress.finish();
    EXPECT(out ==
           "check 30/70 42.9% | 1/s | eta 40s\ncheck 60/70 85.7% | 1/s | eta 10s\n"
           "check 70/70 100.0% | 1/s\n");
  }
  SUBCASE("a short phase says nothing in a log file") {
    Progress progress(write, false, [&] { return now; });
    progress.phase("check");
    progress.update(1, 1);
    progress.finish();
    EXPECT(out.empty());
  }
  EXPECT(duration_text(13281) == "3h41m");
  EXPECT(duration_text(75) == "1m15s");
  EXPECT(duration_text(4.2) == "4s");
  EXPECT(duration_text(200000) == "2d07h");
}
