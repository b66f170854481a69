#include "bench/files.h"

#include <omp.h>
#include <unistd.h>

#include <filesystem>

#include "bench/random_weights.h"
#include "merge/interpolate.h"
#include "train/loader.h"

namespace sft {
namespace {

namespace fs = std::filesystem;

// Seconds of audio.
double decode_all(const Manifest& manifest, int threads) {
  AudioLoader loader(manifest, threads, 0);
  const auto rows = static_cast<uint32_t>(manifest.rows.size());
  const auto ahead = static_cast<uint32_t>(2 * threads);
  int64_t samples = 0;
  for (uint32_t row = 0; row < rows; ++row) {
    for (uint32_t next = row; next < std::min(rows, row + ahead); ++next)
      loader.prefetch({&next, 1});
    samples += std::ssize(loader.get(row));
    loader.release(row, /*keep=*/false);
  }
  return static_cast<double>(samples) / 16000;
}

class Folder {
 public:
  explicit Folder(const std::string& within)
      : path_(fs::path(within) / fmt::format("sft-bench-merge.{}", getpid())) {
    std::error_code error;
    if (!fs::create_directory(path_, error))
      fail(Kind::resource, "{}: cannot be made ({})", printable(path_.string()),
           error ? error.message() : "it is there already");
  }
  ~Folder() {
    std::error_code ignored;
    fs::remove_all(path_, ignored);
  }
  Folder(const Folder&) = delete;
  Folder& operator=(const Folder&) = delete;
  std::string operator/(const char* name) const { return (path_ / name).string(); }

 private:
  fs::path path_;
};

void write_model(const std::string& path, const Config& config, uint64_t seed) {
  TensorMap tensors;
  RandomWeights(seed).add(tensors, backbone_tensors(config));
  save_model(path, "gguf", config, tensors);
}

}  // namespace

IoResult bench_io(const Manifest& manifest, int repeats) {
  IoResult result{.name = manifest.name, .files = std::ssize(manifest.rows)};
  result.threads = omp_get_max_threads();
  std::vector<double> seconds, cpu;
  for (int pass = 0; pass <= repeats; ++pass) {
    const double cpu_start = process_cpu_seconds();
    const Stopwatch watch;
    result.audio_seconds = decode_all(manifest, result.threads);
    if (pass == 0) {
      result.first_seconds = watch.seconds();
      continue;
    }
    seconds.push_back(watch.seconds());
    cpu.push_back(process_cpu_seconds() - cpu_start);
  }
  result.pass = spread_of(seconds);
  result.cpu_seconds = spread_of(cpu).median;
  return result;
}

KernelRow bench_merge(const Config& config, const std::string& folder, const std::string& arch,
                      int repeats, uint64_t seed) {
  Config encoder = config;
  encoder.task = {};
  const Folder files(folder);
  const std::string base = files / "base.gguf", tuned = files / "tuned.gguf";
  write_model(base, encoder, seed), write_model(tuned, encoder, seed + 1);
  const auto bytes = static_cast<double>(fs::file_size(base));
  std::vector<double> seconds;
  for (int r = 0; r <= repeats; ++r) {  // the first one warms up
    const Stopwatch watch;
    MergeJob job;
    job.base = open_stored_model(base), job.tuned.push_back(open_stored_model(tuned));
    job.outputs = {{0.25, files / "merged.gguf"}};
    job.existing = Existing::replace;
    interpolate(std::move(job));
    if (r > 0) seconds.push_back(watch.seconds());
  }
  return {fmt::format("merge/{}/-/2/all", arch), 1, spread_of(seconds), 0, 3 * bytes};
}

}  // namespace sft
