// A run directory (docs/contract.md section 4):
//
//   run.toml  record.json  log.txt  metrics.jsonl  lock  done (when it is finished)
//   gemm.txt (on a device: algorithms of its products)
//   ckpt/step-00012000/{model.gguf, state.safetensors, manifest.json}   ckpt/LAST  ckpt/BEST
//   eval/step-00012000/{ref.trn, hyp.trn, scores.json}
//
// A checkpoint is written under a temporary name; each file is synced, read back and hashed;
// manifest.json (names, bytes, XXH3-128) comes last; then the folder is renamed, and LAST is
// replaced. At every instant the newest complete checkpoint is intact: nothing is pruned before its
// successor is in place. Readers take only checkpoints whose manifest holds, the newest first.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "engine/io/file.h"
#include "engine/io/lock.h"

namespace sft {

class RunDir {
 public:
  // Names a folder and touches nothing: create or resume makes it a run.
  explicit RunDir(std::string path);
  bool opened() const { return lock_ != nullptr; }
  // Whether create would refuse the folder: throws as it would, and changes nothing.
  static void check_new(const std::string& path, Existing existing);
  // A new run: the folder must not exist (or be empty) unless `existing` is replace. run_toml and
  // record_json are written once. Takes the lock.
  static RunDir create(const std::string& path, const std::string& run_toml,
                       const std::string& record_json, Existing existing = Existing::refuse);
  // An existing run, to go on with; Kind::input if it is none, Kind::resource if another process
  // holds its lock.
  static RunDir resume(const std::string& path);

  const std::string& path() const { return path_; }
  std::string file(const std::string& name) const { return path_ + "/" + name; }

  void log(const std::string& line);      // log.txt, with the time
  void metrics(const std::string& json);  // metrics.jsonl, one object
  // Cuts metrics of steps after `step` off, and removes checkpoints after it (which do not hold):
  // the run goes on from there.
  void go_on_from(int64_t step);

  // write(folder) makes model.gguf and state.safetensors in it. Then LAST is this checkpoint.
  void save_checkpoint(int64_t step, const std::function<void(const std::string& folder)>& write);
  bool mark_best(int64_t step);  // false: there is no such checkpoint; then there is no BEST
  // Removes all but BEST and the newest `keep` (at least two), and what a crash left behind.
  void prune(int64_t keep);

  struct Checkpoint {
    int64_t step;
    std::string folder;
  };
  // The newest whose manifest holds; those that do not are reported to `say`. Kind::input if there
  // are some and none holds.
  std::optional<Checkpoint> last_checkpoint(
      const std::function<void(const std::string&)>& say) const;
  std::optional<int64_t> best_step() const;
  // eval/step-N, made empty.
  std::string new_evaluation(int64_t step);
  void mark_done();
  bool done() const;

 private:
  void open_logs();
  void rewind_metrics(int64_t step);

  std::string path_;
  std::unique_ptr<LockFile> lock_;
  std::unique_ptr<LogFile> log_, metrics_;
};

// Throws Kind::input naming what does not hold.
void verify_checkpoint(const std::string& folder);
std::string step_name(int64_t step);  // "step-00012000"

}  // namespace sft
