#include "train/run_dir.h"

#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "tests/doctest.h"
#include "tests/temporary_folder.h"

using namespace sft;
namespace fs = std::filesystem;

namespace {

void save(RunDir& run, int64_t step, const std::string& content) {
  run.save_checkpoint(step, [&](const std::string& folder) {
    write_text(folder + "/model.gguf", content);
    write_text(folder + "/state.safetensors", content + " state");
  });
}

RunDir fresh(const test::TemporaryFolder& folder) {
  return RunDir::create(folder / "run", "a = 1\n", "{}");
}

std::vector<std::string> checkpoints(const RunDir& run) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(run.file("ckpt")))
    if (entry.is_directory()) names.push_back(entry.path().filename());
  std::sort(names.begin(), names.end());
  return names;
}

int64_t newest(const RunDir& run, std::vector<std::string>* said = nullptr) {
  return run
      .last_checkpoint([&](const std::string& line) {
        if (said) said->push_back(line);
      })
      ->step;
}

}  // namespace

TEST_CASE("run_dir: the newest checkpoint that holds; damage is passed over and said") {
  const test::TemporaryFolder folder;
  RunDir run = fresh(folder);
  EXPECT(!run.last_checkpoint([](const std::string&) {}));
  for (int64_t step : {10, 20, 30}) save(run, step, fmt::format("weights {}", step));
  EXPECT(read_text(run.file("ckpt/LAST")) == "step-00000030\n");
  EXPECT(newest(run) == 30);
  std::vector<std::string> said;
  std::ofstream(run.file("ckpt/step-00000030/state.safetensors"), std::ios::in | std::ios::out)
      << "W";
  EXPECT(newest(run, &said) == 20);
  REQUIRE(said.size() == 1);
  EXPECT(said[0].find("step-00000030/state.safetensors: is not what was written") !=
         std::string::npos);
  fs::resize_file(run.file("ckpt/step-00000020/model.gguf"), 3);
  EXPECT(newest(run) == 10);
  fs::remove(run.file("ckpt/step-00000010/manifest.json"));
  const Error e = test::error_of([&] { run.last_checkpoint([](const std::string&) {}); });
  EXPECT(e.kind == Kind::input);
  EXPECT(e.message.find("none of its 3 checkpoints holds") != std::string::npos);
}

TEST_CASE("run_dir: pruning keeps BEST and the newest two; going on removes what came after") {
  const test::TemporaryFolder folder;
  RunDir run = fresh(folder);
  for (int64_t step : {10, 20, 30, 40, 50}) {
    save(run, step, "w");
    if (step == 20) EXPECT(run.mark_best(step));
    run.metrics(fmt::format("{{\"step\":{}}}", step));
    run.prune(0);
  }
  EXPECT(checkpoints(run) ==
         std::vector<std::string>{"step-00000020", "step-00000040", "step-00000050"});
  EXPECT(run.best_step() == 20);
  run.go_on_from(40);
  EXPECT(checkpoints(run) == std::vector<std::string>{"step-00000020", "step-00000040"});
  EXPECT(read_text(run.file("ckpt/LAST")) == "step-00000040\n");
  EXPECT(read_text(run.file("metrics.jsonl")) ==
         "{\"step\":10}\n{\"step\":20}\n{\"step\":30}\n{\"step\":40}\n");
  run.metrics("{\"step\":41}");
  EXPECT(read_text(run.file("metrics.jsonl")).ends_with("{\"step\":41}\n"));
  EXPECT(!run.mark_best(50));
  EXPECT(!run.best_step());
}

// A process that saves step 20 over step 10 ends before its n-th change of the file system, or that
// change fails: for every n, what was there before is found afterwards, or the new one.
TEST_CASE("run_dir: a crash or a failure at any moment of a save leaves a checkpoint that holds") {
  for (const bool crash : {true, false}) {
    bool finished = false;
    for (int n = 0; n < 500 && !finished; ++n) {
      const test::TemporaryFolder folder;
      {
        RunDir run = fresh(folder);
        save(run, 10, "old");
        run.mark_best(10);
      }
      const pid_t child = fork();
      if (child == 0) {
        int code = 0;
        try {
          RunDir run = RunDir::resume(folder / "run");
          int calls = 0;
          const io::ScopedHook hook([&](io::Op op, const std::string&) {
            if (op == io::Op::read || calls++ != n) return 0;
            if (crash) _exit(1);
            return ENOSPC;
          });
          save(run, 20, "new");
          run.mark_best(20);
          run.prune(2);
        } catch (const Error& e) {
          code = e.kind == Kind::resource || e.kind == Kind::input ? 1 : 2;
        }
        _exit(code);
      }
      int status = 0;
      waitpid(child, &status, 0);
      REQUIRE(WIFEXITED(status));
      REQUIRE(WEXITSTATUS(status) <= 1);
      finished = WEXITSTATUS(status) == 0;
      RunDir run = RunDir::resume(folder / "run");
      const auto last = run.last_checkpoint([](const std::string&) {});
      REQUIRE(last);
      REQUIRE(read_text(last->folder + "/model.gguf") == (last->step == 10 ? "old" : "new"));
      const int64_t best = run.best_step().value();
      REQUIRE((best == 10 || best == 20));
      verify_checkpoint(run.file("ckpt/" + step_name(best)));
      run.prune(2);
      for (const std::string& name : checkpoints(run)) REQUIRE(name.find(".tmp") == name.npos);
    }
    EXPECT(finished);
  }
}

TEST_CASE("run_dir: one process at a time, and no run over another") {
  const test::TemporaryFolder folder;
  {
    const RunDir run = fresh(folder);
    for (const bool resume : {false, true}) {
      const Error e = test::error_of([&] {
        if (resume)
          RunDir::resume(folder / "run");
        else
          fresh(folder);
      });
      EXPECT(e.kind == Kind::resource);
      EXPECT(e.message.find(fmt::format("locked by pid {}", getpid())) != std::string::npos);
    }
  }
  const Error again = test::error_of([&] { fresh(folder); });
  EXPECT(again.kind == Kind::usage);
  EXPECT(again.hint.find("--resume") != std::string::npos);
  RunDir::create(folder / "run", "a = 2\n", "{}", Existing::replace);
  EXPECT(read_text(folder / "run/run.toml") == "a = 2\n");
  EXPECT(test::error_of([&] { RunDir::resume(folder / "none"); }).kind == Kind::input);
  fs::create_directory(folder / "photos");
  write_text(folder / "photos/cat.jpg", "");
  const Error other =
      test::error_of([&] { RunDir::create(folder / "photos", "", "{}", Existing::replace); });
  EXPECT(other.kind == Kind::usage);
  EXPECT(fs::exists(folder / "photos/cat.jpg"));
  // what a run leaves that was killed while its folder was made
  fs::create_directory(folder / "half");
  write_text(folder / "half/record.json", "{}");
  RunDir::create(folder / "half", "", "{}");
}
