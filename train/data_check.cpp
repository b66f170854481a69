#include "train/data_check.h"

#include <omp.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <exception>
#include <mutex>

#include "engine/audio/decode.h"
#include "engine/check.h"

namespace sft {

namespace {

// What load_audio returns for the row, from the header alone.
int64_t declared_samples(const Utterance& u) {
  AudioInfo info = probe_audio(u.file);
  const auto frame = [&](double seconds) {
    return std::min<int64_t>(std::llround(seconds * info.rate), info.frames);
  };
  const int64_t last = std::isfinite(u.end) ? frame(u.end) : info.frames;
  info.frames = last - frame(u.start);
  return samples_at_16k(info);
}

int64_t read_samples(const Utterance& u, bool decode) {
  if (!decode) return declared_samples(u);
  return static_cast<int64_t>(load_audio(u.file, AudioRange{u.start, u.end}).size());
}

void check_audio(const Utterance& u, const DataCheckOptions& options, CheckedRow& row) {
  constexpr double kRounding = 0.02;  // seconds; manifests are written with few digits
  row.samples = read_samples(u, options.decode);
  const double seconds = static_cast<double>(row.samples) / kSampleRate;
  if (std::abs(seconds - u.seconds) > kRounding)
    row.fault = fmt::format("has {:.3f} s of audio, seconds says {}", seconds, u.seconds);
  else if (row.samples < options.min_samples)
    row.fault =
        fmt::format("has {} samples (expected at least {})", row.samples, options.min_samples);
}

void check_target(const Manifest& manifest, const Utterance& u, const DataCheckOptions& options,
                  CheckedRow& row, Deleted& deleted) {
  if (!options.need_target && manifest.value(u, options.target.column).empty()) return;
  const std::string text = read_target(manifest, u, options.target, &deleted);
  row.labels = options.units->encode(text, options.target.column);
  const int64_t frames = frames_of(row.samples, options.hop, options.receptive);
  const int64_t needed = ctc_frames_needed(row.labels);
  if (row.fault.empty() && frames < needed)
    row.fault =
        fmt::format("target has {} labels but audio gives {} frames (needs {} with repeats)",
                    row.labels.size(), frames, needed);
}

// A message about a row without the place it begins with, which the reader of faults prints.
std::string without_place(const std::string& message, const std::string& place) {
  if (!message.starts_with(place)) return message;
  const size_t begin = message.find_first_not_of(": ", place.size());
  return begin == std::string::npos ? message : message.substr(begin);
}

CheckedRow check_row(const Manifest& manifest, const Utterance& u, const DataCheckOptions& options,
                     Deleted& deleted) {
  CheckedRow row;
  row.fault = row_fault(u, options.limits);
  try {
    if (row.fault.empty()) check_audio(u, options, row);
    if (options.units) check_target(manifest, u, options, row, deleted);
  } catch (const Error& e) {
    if (e.kind != Kind::input) throw;
    if (row.fault.empty()) row.fault = without_place(e.message, manifest.where(u));
  }
  return row;
}

// An exception must not leave a parallel loop: the first is kept, and thrown behind it.
class FirstException {
 public:
  void keep() {
    const std::lock_guard lock(mutex_);
    if (!first_) first_ = std::current_exception();
  }
  void rethrow() const {
    if (first_) std::rethrow_exception(first_);
  }

 private:
  std::mutex mutex_;
  std::exception_ptr first_;
};

}  // namespace

int64_t frames_of(int64_t samples, int hop, int receptive) {
  return samples < receptive ? 0 : (samples - receptive) / hop + 1;
}

DataCheck check_data(const Manifest& manifest, const DataCheckOptions& options,
                     const std::function<void(int64_t)>& progress) {
  if (options.units && options.need_target) manifest.column(options.target.column);
  const auto count = static_cast<int64_t>(manifest.rows.size());
  DataCheck check;
  check.rows.resize(manifest.rows.size());
  std::vector<Deleted> deleted(manifest.rows.size());
  std::atomic<int64_t> done = 0;
  FirstException exception;
#pragma omp parallel for schedule(dynamic)
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<size_t>(i);
    try {
      check.rows[at] = check_row(manifest, manifest.rows[at], options, deleted[at]);
    } catch (...) {
      exception.keep();
    }
    ++done;
    if (progress && omp_get_thread_num() == 0) progress(done);
  }
  exception.rethrow();
  for (const CheckedRow& row : check.rows) check.bad += !row.fault.empty();
  for (const Deleted& one : deleted)
    for (const auto& [character, times] : one) check.deleted[character] += times;
  return check;
}

void drop_bad(Manifest& manifest, DataCheck& check, int64_t max_bad) {
  CHECK(check.rows.size() == manifest.rows.size(), "drop_bad: {} checks of {} rows",
        check.rows.size(), manifest.rows.size());
  size_t kept = 0;
  for (size_t i = 0; i < manifest.rows.size(); ++i) {
    if (!check.rows[i].fault.empty()) {
      if (check.bad > max_bad)
        fail(Kind::input,
             Hint{"sft-data check lists them; data.max_bad is how many may be left out"},
             "{}: {} ({} rows cannot be used; at most {} may be)", manifest.where(manifest.rows[i]),
             check.rows[i].fault, check.bad, max_bad);
      continue;
    }
    if (kept != i) {
      manifest.rows[kept] = std::move(manifest.rows[i]);
      check.rows[kept] = std::move(check.rows[i]);
    }
    ++kept;
  }
  if (kept == 0) fail(Kind::input, "{}: no row can be used", printable(manifest.name));
  manifest.rows.resize(kept);
  check.rows.resize(kept);
  check.bad = 0;
}

}  // namespace sft
