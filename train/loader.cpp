#include "train/loader.h"

#include "engine/audio/decode.h"

namespace sft {

AudioLoader::AudioLoader(const Manifest& manifest, int threads, int64_t keep_bytes)
    : manifest_(manifest),
      keep_bytes_(keep_bytes),
      slots_(manifest.rows.size()),
      queue_(manifest.rows.size()) {
  for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
}

AudioLoader::~AudioLoader() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  wanted_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void AudioLoader::prefetch(std::span<const uint32_t> rows) {
  const std::lock_guard lock(mutex_);
  for (uint32_t row : rows) {
    if (slots_[row].state != State::absent) continue;
    slots_[row].state = State::queued;
    queue_[(first_ + queued_++) % queue_.size()] = row;
    wanted_.notify_one();
  }
}

std::span<const float> AudioLoader::get(uint32_t row) {
  prefetch({&row, 1});
  std::unique_lock lock(mutex_);
  Slot& slot = slots_[row];
  made_.wait(lock, [&] { return slot.state == State::ready; });
  if (slot.error) std::rethrow_exception(slot.error);
  return slot.samples;
}

void AudioLoader::release(uint32_t row, bool keep) {
  const std::lock_guard lock(mutex_);
  Slot& slot = slots_[row];
  if (slot.state != State::ready || (keep && kept_ <= keep_bytes_)) return;
  kept_ -= static_cast<int64_t>(slot.samples.size() * sizeof(float));
  slot = {};
}

void AudioLoader::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    wanted_.wait(lock, [&] { return stop_ || queued_ > 0; });
    if (stop_) return;
    const uint32_t row = queue_[first_];
    first_ = (first_ + 1) % queue_.size(), --queued_;
    lock.unlock();
    std::vector<float> samples;
    std::exception_ptr error;
    try {
      const Utterance& u = manifest_.rows[row];
      samples = load_audio(u.file, AudioRange{u.start, u.end});
    } catch (...) {
      error = std::current_exception();
    }
    lock.lock();
    kept_ += static_cast<int64_t>(samples.size() * sizeof(float));
    slots_[row].samples = std::move(samples);
    slots_[row].error = error;
    slots_[row].state = State::ready;
    made_.notify_all();
  }
}

}  // namespace sft
