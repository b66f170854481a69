#include "train/run_dir.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <ctime>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <vector>

#include "engine/check.h"
#include "engine/io/directory.h"
#include "engine/io/hash.h"

namespace sft {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr const char* kCheckpointFiles[] = {"model.gguf", "state.safetensors"};

// Names of checkpoints in `folder`, oldest first.
std::vector<std::string> checkpoint_names(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code code;
  for (fs::directory_iterator entry(folder, code), end; !code && entry != end;
       entry.increment(code))
    names.push_back(entry->path().filename());
  std::erase_if(names, [](const std::string& name) {
    return !name.starts_with("step-") || name.find(".tmp") != std::string::npos;
  });
  std::sort(names.begin(), names.end());
  return names;
}

int64_t step_of(const std::string& name) {
  int64_t step = -1;
  std::from_chars(name.data() + 5, name.data() + name.size(), step);
  return step;
}

std::string first_line(const std::string& path) {
  const std::string text = read_text(path);
  return text.substr(0, text.find('\n'));
}

void write_manifest(const std::string& folder, int64_t step) {
  Json files = Json::object();
  for (const char* name : kCheckpointFiles) {
    const std::string path = folder + "/" + name;
    files[name] = {{"bytes", fs::file_size(path)}, {"xxh3", xxh3_of_file(path)}};
  }
  write_text(folder + "/manifest.json",
             Json{{"format", 1}, {"step", step}, {"files", files}}.dump(1) + "\n");
}

}  // namespace

std::string step_name(int64_t step) { return fmt::format("step-{:08}", step); }

void verify_checkpoint(const std::string& folder) {
  const std::string path = folder + "/manifest.json";
  const Json manifest = Json::parse(read_text(path), nullptr, false);
  if (!manifest.is_object() || !manifest.contains("files") || !manifest["files"].is_object())
    fail(Kind::input, "{}: not a checkpoint's manifest", path);
  for (const char* name : kCheckpointFiles) {
    const Json& file = manifest["files"].contains(name) ? manifest["files"][name] : Json();
    if (!file.is_object() || !file.contains("xxh3") || !file["xxh3"].is_string())
      fail(Kind::input, "{}: says nothing of {}", path, name);
    const std::string found = xxh3_of_file(folder + "/" + name);
    if (found != file["xxh3"].get<std::string>())
      fail(Kind::input, "{}/{}: is not what was written (XXH3-128 {}, expected {})", folder, name,
           found, printable(file["xxh3"].get<std::string>()));
  }
}

namespace {

bool exists(const std::string& path) {
  std::error_code code;
  return fs::exists(path, code);
}

// Something else than what a run leaves that was stopped while it was made.
bool holds_other_files(const std::string& folder) {
  std::error_code code;
  for (fs::directory_iterator entry(folder, code), end; !code && entry != end;
       entry.increment(code)) {
    const std::string name = entry->path().filename();
    if (name != "lock" && name != "record.json" && name.find(".tmp-") == std::string::npos)
      return true;
  }
  return static_cast<bool>(code);
}

}  // namespace

RunDir::RunDir(std::string path) : path_(std::move(path)) {
  while (path_.size() > 1 && path_.back() == '/') path_.pop_back();
}

void RunDir::check_new(const std::string& path, Existing existing) {
  const RunDir run(path);
  if (!exists(run.path_)) return;
  if (exists(run.file("run.toml"))) {
    if (existing == Existing::replace) return;
    const LockFile lock(run.file("lock"));  // whoever is at work there says more than the folder
    fail(Kind::usage, Hint{"--resume goes on with it, --force begins anew, -o names another"},
         "{}: there is a run already", run.path_);
  }
  if (holds_other_files(run.path_))
    fail(Kind::usage, Hint{"-o names another"}, "{}: exists, and is no run", run.path_);
}

RunDir RunDir::create(const std::string& path, const std::string& run_toml,
                      const std::string& record_json, Existing existing) {
  check_new(path, existing);
  RunDir run(path);
  make_directory(run.path_);
  run.lock_ = std::make_unique<LockFile>(run.file("lock"));
  for (const char* name : {"done", "record.json", "log.txt", "metrics.jsonl", "gemm.txt", "ckpt",
                           "eval", "targets", "run.toml"})
    remove_tree(run.file(name));
  make_directory(run.file("ckpt"));
  write_text(run.file("record.json"), record_json);
  write_text(run.file("run.toml"), run_toml);
  run.open_logs();
  return run;
}

RunDir RunDir::resume(const std::string& path) {
  RunDir run(path);
  if (!exists(run.file("run.toml")))
    fail(Kind::input, "{}: no run to go on with (expected run.toml)", run.path_);
  run.lock_ = std::make_unique<LockFile>(run.file("lock"));
  make_directory(run.file("ckpt"));
  run.open_logs();
  return run;
}

void RunDir::open_logs() {
  log_ = std::make_unique<LogFile>(file("log.txt"));
  metrics_ = std::make_unique<LogFile>(file("metrics.jsonl"));
}

void RunDir::log(const std::string& line) {
  log_->append(fmt::format("{:%Y-%m-%d %H:%M:%S} {}", fmt::localtime(std::time(nullptr)), line));
}

void RunDir::metrics(const std::string& json) { metrics_->append(json); }

void RunDir::rewind_metrics(int64_t step) {
  const std::string text = read_text(file("metrics.jsonl"), uint64_t{1} << 32);
  std::string kept;
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find('\n', begin), text.size());
    const std::string line = text.substr(begin, end - begin);
    const Json json = Json::parse(line, nullptr, false);
    if (json.is_object() && json.contains("step") && json["step"].is_number_integer() &&
        json["step"].get<int64_t>() <= step)
      kept += line + "\n";
    begin = end + 1;
  }
  metrics_.reset();
  write_text(file("metrics.jsonl"), kept, Existing::replace);
  metrics_ = std::make_unique<LogFile>(file("metrics.jsonl"));
}

void RunDir::save_checkpoint(int64_t step, const std::function<void(const std::string&)>& write) {
  const std::string name = step_name(step), folder = file("ckpt/" + name);
  OutputDirectory out(folder, Existing::replace);
  write(out.folder());
  write_manifest(out.folder(), step);
  verify_checkpoint(out.folder());
  out.commit();
  write_text(file("ckpt/LAST"), name + "\n", Existing::replace);
}

bool RunDir::mark_best(int64_t step) {
  const std::string mark = file("ckpt/BEST");
  if (!exists(file("ckpt/" + step_name(step)))) {
    remove_tree(mark);
    return false;
  }
  if (best_step() != step) write_text(mark, step_name(step) + "\n", Existing::replace);
  return true;
}

void RunDir::go_on_from(int64_t step) {
  rewind_metrics(step);
  for (const std::string& name : checkpoint_names(file("ckpt")))
    if (step_of(name) > step) remove_tree(file("ckpt/" + name));
  if (exists(file("ckpt/" + step_name(step))))
    write_text(file("ckpt/LAST"), step_name(step) + "\n", Existing::replace);
}

void RunDir::prune(int64_t keep) {
  const std::string best = exists(file("ckpt/BEST")) ? first_line(file("ckpt/BEST")) : "";
  std::vector<std::string> names = checkpoint_names(file("ckpt"));
  const auto newest = static_cast<size_t>(std::max<int64_t>(keep, 2));
  for (size_t i = 0; i + newest < names.size(); ++i)
    if (names[i] != best) remove_tree(file("ckpt/" + names[i]));
  for (const fs::directory_entry& entry : fs::directory_iterator(file("ckpt")))
    if (entry.path().filename().string().find(".tmp-") != std::string::npos)
      remove_tree(entry.path());
}

std::optional<RunDir::Checkpoint> RunDir::last_checkpoint(
    const std::function<void(const std::string&)>& say) const {
  std::vector<std::string> names = checkpoint_names(file("ckpt"));
  for (auto name = names.rbegin(); name != names.rend(); ++name) {
    const std::string folder = file("ckpt/" + *name);
    try {
      verify_checkpoint(folder);
      return Checkpoint{step_of(*name), folder};
    } catch (const Error& e) {
      say(fmt::format("passing over a damaged checkpoint: {}", e.message));
    }
  }
  if (!names.empty())
    fail(Kind::input, Hint{"--force begins anew"}, "{}: none of its {} checkpoints holds", path_,
         names.size());
  return std::nullopt;
}

std::optional<int64_t> RunDir::best_step() const {
  if (!exists(file("ckpt/BEST"))) return std::nullopt;
  return step_of(first_line(file("ckpt/BEST")));
}

std::string RunDir::new_evaluation(int64_t step) {
  const std::string folder = file("eval/" + step_name(step));
  remove_tree(folder);
  make_directory(folder);
  return folder;
}

void RunDir::mark_done() { write_text(file("done"), "", Existing::replace); }
bool RunDir::done() const { return exists(file("done")); }

}  // namespace sft
