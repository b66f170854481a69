#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <thread>

#include "engine/cpu/narrow.h"
#include "tests/run_program.h"
#include "tests/train/tiny_speech.h"

using namespace sft;
using test::Outcome;
using test::run_program;
using test::TinySpeech;
namespace fs = std::filesystem;

extern char** environ;

namespace {

std::vector<std::string> arguments(const TinySpeech& speech, const std::string& run,
                                   const std::vector<std::string>& more = {}) {
  std::vector<std::string> all = {speech.model, "--ctc", speech.manifest, "-o", speech.folder / run,
                                  "--threads",  "1"};
  for (const char* setting : {"head.kind=linear", "batch.utterances=2", "log.every=1",
                              "eval.every=7", "ckpt.minutes=0.0005"})
    all.insert(all.end(), {"--set", setting});
  all.insert(all.end(), more.begin(), more.end());
  return all;
}

// sft-train in the background.
class Child {
 public:
  explicit Child(const std::vector<std::string>& arguments) {
    const std::string path = test::program_path("sft-train");
    std::vector<char*> argv = {const_cast<char*>(path.c_str())};
    for (const std::string& a : arguments) argv.push_back(const_cast<char*>(a.c_str()));
    argv.push_back(nullptr);
    posix_spawn_file_actions_t files;
    posix_spawn_file_actions_init(&files);
    for (int fd : {1, 2}) posix_spawn_file_actions_addopen(&files, fd, "/dev/null", O_WRONLY, 0600);
    REQUIRE(posix_spawn(&pid_, path.c_str(), &files, nullptr, argv.data(), environ) == 0);
    posix_spawn_file_actions_destroy(&files);
  }
  ~Child() {
    if (pid_) kill(SIGKILL), wait();
  }
  Child(const Child&) = delete;

  pid_t pid() const { return pid_; }
  void kill(int signal) const { ::kill(pid_, signal); }
  // 128 + signal if one ended it.
  int wait() {
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  bool running() {
    siginfo_t info{};
    waitid(P_PID, static_cast<id_t>(pid_), &info, WEXITED | WNOHANG | WNOWAIT);
    return info.si_pid == 0;
  }

 private:
  pid_t pid_ = 0;
};

int64_t size_of(const std::string& path) {
  std::error_code code;
  const auto size = fs::file_size(path, code);
  return code ? 0 : static_cast<int64_t>(size);
}

// Until metrics.jsonl has grown by `bytes`; false: the child ended before.
bool wait_for_metrics(Child& child, const std::string& run, int64_t bytes) {
  const int64_t goal = size_of(run + "/metrics.jsonl") + bytes;
  while (size_of(run + "/metrics.jsonl") < goal) {
    if (!child.running()) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

// metrics.jsonl without wall times.
std::vector<nlohmann::json> metrics(const std::string& run) {
  std::vector<nlohmann::json> found;
  std::istringstream text(read_text(run + "/metrics.jsonl"));
  for (std::string line; std::getline(text, line);) {
    found.push_back(nlohmann::json::parse(line));
    found.back().erase("seconds");
  }
  return found;
}

void expect_same_run(const std::string& a, const std::string& b, const std::string& step) {
  for (const char* file : {"model.gguf", "state.safetensors"})
    EXPECT_MESSAGE(read_text(a + "/ckpt/" + step + "/" + file, 1 << 26) ==
                       read_text(b + "/ckpt/" + step + "/" + file, 1 << 26),
                   file);
  EXPECT(read_text(a + "/ckpt/BEST") == read_text(b + "/ckpt/BEST"));
  EXPECT(read_text(a + "/eval/" + step + "/hyp.trn") ==
         read_text(b + "/eval/" + step + "/hyp.trn"));
  EXPECT(metrics(a) == metrics(b));
}

}  // namespace

TEST_CASE("sft-train: killed at five random moments and resumed, the run ends with the same bits") {
  if (test::absent("sft-train")) return;
  const TinySpeech speech;
  const std::vector<std::string> steps = {"--steps", "60"};
  const Outcome whole = run_program("sft-train", arguments(speech, "whole", steps));
  INFO(whole.err);
  REQUIRE(whole.code == 0);
  const std::string run = speech.folder / "killed";
  std::mt19937 random(static_cast<uint32_t>(getpid()));
  std::vector<std::string> more = steps;
  for (int kills = 0; kills < 5;) {
    Child child(arguments(speech, "killed", more));
    if (!wait_for_metrics(child, run, 1 + random() % 1200)) break;
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 20000));
    child.kill(SIGKILL);
    if (child.wait() == 128 + SIGKILL) ++kills;
    more = {"--steps", "60", "--resume"};
  }
  const Outcome last = run_program("sft-train", arguments(speech, "killed", more));
  INFO(last.err);
  REQUIRE(last.code == 0);
  expect_same_run(speech.folder / "whole", run, "step-00000060");
}

TEST_CASE("sft-train: a signal saves and ends with 75; the resumed run has the same bits") {
  if (test::absent("sft-train")) return;
  for (const Math math : {Math::exact, Math::fast16}) {
    if (math != Math::exact && !cpu::narrow::available(math))
      return test::skip("needs AVX-512 with VNNI");
    const TinySpeech speech;
    const std::vector<std::string> options = {"--steps", "40", "--math", std::string(name(math))};
    const Outcome whole = run_program("sft-train", arguments(speech, "whole", options));
    INFO(whole.err);
    REQUIRE(whole.code == 0);
    Child child(arguments(speech, "stopped", options));
    REQUIRE(wait_for_metrics(child, speech.folder / "stopped", 400));
    const Outcome second = run_program("sft-train", arguments(speech, "stopped", options));
    if (second.err.find("locked by") != std::string::npos) {  // the first one is still there
      EXPECT(second.code == 4);
      EXPECT(second.err.find(fmt::format("locked by pid {}", child.pid())) != std::string::npos);
    }
    child.kill(SIGTERM);
    const int code = child.wait();
    EXPECT((code == 75 || code == 0));
    const Outcome rest = run_program("sft-train", arguments(speech, "stopped", {"--resume"}));
    INFO(rest.err);
    REQUIRE(rest.code == 0);
    expect_same_run(speech.folder / "whole", speech.folder / "stopped", "step-00000040");
  }
}

TEST_CASE("sft-train: a second signal ends it at once; the run goes on from its checkpoints") {
  if (test::absent("sft-train")) return;
  const TinySpeech speech;
  Child child(arguments(speech, "run", {"--steps", "100000"}));
  REQUIRE(wait_for_metrics(child, speech.folder / "run", 400));
  child.kill(SIGSTOP);  // so that both are there before the update ends
  child.kill(SIGTERM);
  child.kill(SIGINT);
  child.kill(SIGCONT);
  const int code = child.wait();
  EXPECT_MESSAGE((code == 130 || code == 143), code);
  EXPECT(!fs::exists(speech.folder / "run/done"));
  Child again(arguments(speech, "run", {"--resume"}));
  REQUIRE(wait_for_metrics(again, speech.folder / "run", 400));
  again.kill(SIGTERM);
  EXPECT(again.wait() == 75);
}

TEST_CASE("sft-train: the peak of memory is what the plan said") {
  if (test::absent("sft-train") || test::absent("sft-init") || test::sanitized()) return;
  TinySpeech speech(12, 16000);
  speech.model = speech.folder / "tiny.gguf";
  REQUIRE(run_program("sft-init", {"hubert-tiny", "-o", speech.model}).code == 0);
  const Outcome run =
      run_program("sft-train", arguments(speech, "run",
                                         {"--steps", "6", "--json", "--set", "head.kind=blstm",
                                          "--set", "batch.utterances=4"}));
  INFO(run.err);
  REQUIRE(run.code == 0);
  test::expect_as_planned(run);
}

TEST_CASE("sft-train: bad input: one line, the exit code, nothing left behind") {
  if (test::absent("sft-train")) return;
  const TinySpeech speech;
  const std::string good = read_text(speech.manifest);
  const auto outcome = [&](const std::vector<std::string>& more) {
    const Outcome o = run_program("sft-train", arguments(speech, "run", more));
    EXPECT(o.out.empty());
    EXPECT_MESSAGE(o.err.find("sft-train: error: ") != std::string::npos, o.err);
    EXPECT(!fs::exists(speech.folder / "run"));
    return o;
  };
  const auto with_row = [&](const std::string& row, const std::string& what) {
    write_text(speech.manifest, good + row + "\ttrain\n", Existing::replace);
    const Outcome o = outcome({});
    EXPECT(o.code == 3);
    EXPECT_MESSAGE(o.err.find(what) != std::string::npos, o.err);
    EXPECT_MESSAGE(o.err.find("speech.tsv:11: id bad") != std::string::npos, o.err);
  };
  with_row("bad\tnone.wav\t1\ta\ts0", "none.wav");
  with_row("bad\t0.wav\t0.5\t-\ts0", "text");
  with_row("bad\t0.wav\t0.5\taaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\ts0", "frames");
  write_text(speech.folder / "text.wav", "not audio\n");
  with_row("bad\ttext.wav\t1\ta\ts0", "text.wav");
  // left out by name where the configuration allows it
  const Outcome allowed =
      run_program("sft-train", arguments(speech, "run", {"--dry-run", "--set", "data.max_bad=1"}));
  EXPECT(allowed.code == 0);
  EXPECT(allowed.err.find("id bad") != std::string::npos);
  write_text(speech.manifest, good, Existing::replace);

  EXPECT(outcome({"--stpes", "3"}).code == 2);
  EXPECT(outcome({"--set", "optim.lrr=3"}).err.find("optim.lr") != std::string::npos);
  EXPECT(outcome({"--set", "eval.select=accuracy"}).code == 2);
  write_text(speech.folder / "units.txt", "a cat\nno\n");
  EXPECT(outcome({"--set", "data.units=" + (speech.folder / "units.txt")}).code != 0);
  TinySpeech missing;
  missing.model = missing.folder / "none.gguf";
  EXPECT(run_program("sft-train", arguments(missing, "run")).code == 3);
}

TEST_CASE("sft-train: weights that are not finite are refused by name") {
  if (test::absent("sft-train")) return;
  TinySpeech speech;
  ModelFile model = open_model(speech.model);
  const Tensor norm = model.tensors.find("feat_norm.weight");
  REQUIRE(norm.data);
  std::vector<float> values(norm.f32(), norm.f32() + norm.count());
  values[3] = NAN;
  model.tensors.add_owned("feat_norm.weight", norm.shape, values);
  speech.model = speech.folder / "nan.gguf";
  save_model(speech.model, "gguf", model.config, model.tensors);
  const Outcome o = run_program("sft-train", arguments(speech, "run"));
  EXPECT(o.code == 3);
  EXPECT_MESSAGE(o.err.find("feat_norm.weight") != std::string::npos, o.err);
  EXPECT(!fs::exists(speech.folder / "run"));
}

TEST_CASE("sft-train: an output folder that cannot be written, or is something else") {
  if (test::absent("sft-train")) return;
  const TinySpeech speech;
  write_text(speech.folder / "file", "x");
  EXPECT(run_program("sft-train", arguments(speech, "file")).code == 2);
  EXPECT(run_program("sft-train", arguments(speech, "file/run")).code == 4);
  if (geteuid() != 0) {
    fs::create_directory(speech.folder / "closed");
    fs::permissions(speech.folder / "closed", fs::perms::owner_read | fs::perms::owner_exec);
    const Outcome o = run_program("sft-train", arguments(speech, "closed/run"));
    EXPECT(o.code == 4);
    fs::permissions(speech.folder / "closed", fs::perms::owner_all);
  }
}

TEST_CASE("sft-train: --disk-cache takes a size") {
  if (test::absent("sft-train")) return;
  const TinySpeech speech;
  for (const std::string wrong : {"-1", "1e300", "much"}) {
    const Outcome refused =
        run_program("sft-train", arguments(speech, "run", {"--disk-cache=" + wrong}));
    INFO(refused.err);
    EXPECT(refused.code == 2);
    EXPECT(refused.err.find("--disk-cache: ") != std::string::npos);
    EXPECT(!fs::exists(speech.folder / "run"));
  }
}

TEST_CASE("sft-train: --dry-run prints the plan and writes nothing; --print-config; --json") {
  if (test::absent("sft-train")) return;
  const TinySpeech speech;
  const Outcome dry = run_program("sft-train", arguments(speech, "run", {"--dry-run"}));
  EXPECT(dry.code == 0);
  EXPECT(dry.out.empty());
  EXPECT(dry.err.find("memory: ") != std::string::npos);
  EXPECT(dry.err.find("parameters: head ") != std::string::npos);
  EXPECT(!fs::exists(speech.folder / "run"));
  const Outcome config =
      run_program("sft-train", arguments(speech, "run", {"--print-config", "--recipe", "full"}));
  EXPECT(config.code == 0);
  EXPECT(config.out.find("train.head_only = 0.0  # recipe full\n") != std::string::npos);
  EXPECT(config.out.find("train.recipe = \"full\"  # --recipe\n") != std::string::npos);
  EXPECT(config.out.find("eval.every = 7  # --set\n") != std::string::npos);
  EXPECT(config.out.find("optim.lr = 0.0001  # default\n") != std::string::npos);
  const Outcome run =
      run_program("sft-train", arguments(speech, "run", {"--steps", "2", "--json"}));
  INFO(run.err);
  REQUIRE(run.code == 0);
  const auto report = nlohmann::json::parse(run.out);
  EXPECT(report.at("step") == 2);
  EXPECT(report.at("skipped") == 0);
  const Outcome again = run_program("sft-train", arguments(speech, "run", {"--steps", "2"}));
  EXPECT(again.code == 2);
  EXPECT(again.err.find("--resume goes on with it") != std::string::npos);
}
