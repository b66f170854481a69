// Audio of a manifest's rows, decoded ahead by threads of its own.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <vector>

#include "train/manifest.h"

namespace sft {

class AudioLoader {
 public:
  // Rows are positions in manifest.rows. Decoded audio is kept while all of it fits `keep_bytes`.
  AudioLoader(const Manifest& manifest, int threads, int64_t keep_bytes);
  ~AudioLoader();
  AudioLoader(const AudioLoader&) = delete;
  AudioLoader& operator=(const AudioLoader&) = delete;

  const Manifest& manifest() const { return manifest_; }
  // Decodes these rows in the background.
  void prefetch(std::span<const uint32_t> rows);
  // The samples (16 kHz mono), waiting for them if need be; good until release(row). Rethrows what
  // decoding threw.
  std::span<const float> get(uint32_t row);
  // keep = false: nobody will ask for this row again.
  void release(uint32_t row, bool keep = true);
  int64_t bytes() const { return kept_; }

 private:
  enum class State { absent, queued, ready };
  struct Slot {
    State state = State::absent;
    std::vector<float> samples;
    std::exception_ptr error;
  };
  void work();

  const Manifest& manifest_;
  const int64_t keep_bytes_;
  std::vector<Slot> slots_;
  std::vector<uint32_t> queue_;  // a ring with room for every row
  size_t first_ = 0, queued_ = 0;
  int64_t kept_ = 0;
  bool stop_ = false;
  std::mutex mutex_;
  std::condition_variable wanted_, made_;
  std::vector<std::thread> threads_;
};

}  // namespace sft
