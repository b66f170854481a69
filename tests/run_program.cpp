#include "tests/run_program.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <algorithm>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "engine/check.h"
#include "engine/io/file.h"
#include "tests/temporary_folder.h"

extern char** environ;

namespace sft::test {

std::string program_path(const std::string& name) {
  const char* folder = std::getenv("SFT_TOOLS");
  const std::filesystem::path beside =
      folder ? std::filesystem::path(folder)
             : std::filesystem::read_symlink("/proc/self/exe").parent_path();
  const std::filesystem::path path = beside / name;
  return std::filesystem::exists(path) ? path.string() : "";
}

bool absent(const std::string& name) {
  if (!program_path(name).empty()) return false;
  skip(name + " was not built");
  return true;
}

bool sanitized() {
#ifdef __SANITIZE_ADDRESS__
  skip("memory is the sanitizer's");
  return true;
#else
  return false;
#endif
}

void expect_as_planned(const Outcome& outcome) {
  const auto report = nlohmann::json::parse(outcome.out);
  const double planned = report.at("planned_bytes"), peak = report.at("peak_bytes");
  EXPECT(peak > 64e6);  // more than the program itself
  EXPECT(peak < 1.1 * planned);
  EXPECT(peak > 0.9 * planned);
}

void expect_refused_file(const std::string& path) {
  if (program_path("sft-info").empty()) return;
  const Outcome o = run_program("sft-info", {path});
  INFO(o.err);
  EXPECT(o.code == 3);
  EXPECT(o.out.empty());
  EXPECT(o.err.starts_with("sft-info: error: " + path + ": "));
#ifndef __SANITIZE_ADDRESS__
  // The best of five: on a busy machine processor time grows, too.
  double seconds = o.cpu_seconds;
  for (int i = 0; i < 4 && seconds >= 0.1; ++i)
    seconds = std::min(seconds, run_program("sft-info", {path}).cpu_seconds);
  EXPECT(seconds < 0.1);
#endif
}

Outcome run_program(const std::string& name, const std::vector<std::string>& arguments) {
  const TemporaryFolder folder;
  const std::string path = program_path(name), out = folder / "out", err = folder / "err";
  std::vector<char*> argv = {const_cast<char*>(path.c_str())};
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);

  posix_spawn_file_actions_t files;
  posix_spawn_file_actions_init(&files);
  posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_addopen(&files, 1, out.c_str(), O_WRONLY | O_CREAT, 0600);
  posix_spawn_file_actions_addopen(&files, 2, err.c_str(), O_WRONLY | O_CREAT, 0600);
  pid_t pid = 0;
  const int error = posix_spawn(&pid, path.c_str(), &files, nullptr, argv.data(), environ);
  posix_spawn_file_actions_destroy(&files);
  if (error) fail(Kind::resource, "{}: {}", path, std::strerror(error));

  int status = 0;
  rusage used{};
  wait4(pid, &status, 0, &used);
  const auto seconds = [](const timeval& t) {
    return static_cast<double>(t.tv_sec) + 1e-6 * static_cast<double>(t.tv_usec);
  };
  constexpr uint64_t kMost = 64 << 20;
  return {WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status), read_text(out, kMost),
          read_text(err, kMost), seconds(used.ru_utime) + seconds(used.ru_stime)};
}

}  // namespace sft::test
