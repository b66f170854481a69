#include "engine/audio/decode.h"

#include <sndfile.h>
#include <soxr.h>

#include <algorithm>
#include <cmath>
#include <memory>

#include "engine/audio/container.h"
#include "engine/audio/source.h"
#include "engine/check.h"

namespace sft {
namespace {

constexpr int64_t kBlock = 4096;               // frames decoded at a time
constexpr float kLoudest = 64;                 // |sample|; decoders overshoot 1 a little
constexpr double kRangeSlack = 0.02;           // seconds
constexpr sf_count_t kUnknown = SF_COUNT_MAX;  // libsndfile: length not declared

// ---- libsndfile over a ByteSource

struct Stream {
  const ByteSource& source;
  int64_t position = 0;
};

sf_count_t stream_size(void* user) { return static_cast<Stream*>(user)->source.size; }
sf_count_t stream_tell(void* user) { return static_cast<Stream*>(user)->position; }
sf_count_t stream_seek(sf_count_t offset, int whence, void* user) {
  Stream& s = *static_cast<Stream*>(user);
  if (whence == SEEK_CUR) offset += s.position;
  if (whence == SEEK_END) offset += s.source.size;
  return s.position = std::max<sf_count_t>(0, offset);
}
sf_count_t stream_read(void* to, sf_count_t count, void* user) {
  Stream& s = *static_cast<Stream*>(user);
  if (count <= 0) return 0;
  const size_t got = s.source.read(s.position, to, static_cast<size_t>(count));
  s.position += static_cast<int64_t>(got);
  return static_cast<sf_count_t>(got);
}

// One open file.
struct Decoder {
  Decoder(std::unique_ptr<ByteSource> bytes, const AudioLimits& limits);
  Decoder(const Decoder&) = delete;
  ~Decoder() { sf_close(file); }

  // Reads up to kBlock frames, at most `wanted`; mean of the channels to `mono`. 0: the end.
  int64_t read(int64_t wanted, float* mono);
  void seek(int64_t frame);
  void skip(int64_t frames);  // by reading

  std::unique_ptr<ByteSource> source;
  Stream stream{*source};
  SF_INFO info{};
  SNDFILE* file = nullptr;
  int64_t position = 0;  // frames
  int64_t most;          // frames, by the limits
  std::vector<float> interleaved;
};

bool plain_coding(int format) {
  switch (format & SF_FORMAT_SUBMASK) {
    case SF_FORMAT_PCM_S8:
    case SF_FORMAT_PCM_U8:
    case SF_FORMAT_PCM_16:
    case SF_FORMAT_PCM_24:
    case SF_FORMAT_PCM_32:
    case SF_FORMAT_FLOAT:
    case SF_FORMAT_DOUBLE:
    case SF_FORMAT_ULAW:
    case SF_FORMAT_ALAW:
    case SF_FORMAT_VORBIS:
    case SF_FORMAT_OPUS:
    case SF_FORMAT_MPEG_LAYER_I:
    case SF_FORMAT_MPEG_LAYER_II:
    case SF_FORMAT_MPEG_LAYER_III:
      return true;
    default:
      return false;
  }
}

void check_limits(const Decoder& d, const AudioLimits& limits) {
  const std::string& name = d.source->name;
  if (!plain_coding(d.info.format))
    fail(Kind::input, "{}: sample format 0x{:x} (expected PCM, float, A-law or mu-law)", name,
         d.info.format);
  if (d.info.channels < 1 || d.info.channels > limits.max_channels)
    fail(Kind::input, "{}: {} channels (expected 1 to {})", name, d.info.channels,
         limits.max_channels);
  if (d.info.samplerate < limits.min_rate || d.info.samplerate > limits.max_rate)
    fail(Kind::input, "{}: {} Hz (expected {} to {})", name, d.info.samplerate, limits.min_rate,
         limits.max_rate);
  const double seconds = static_cast<double>(d.info.frames) / d.info.samplerate;
  if (d.info.frames != kUnknown && seconds > limits.max_seconds)
    fail(Kind::input, Hint{"cut it into shorter files"}, "{}: {:.0f} s long (expected at most {})",
         name, seconds, limits.max_seconds);
  if (d.info.frames == 0) fail(Kind::input, "{}: no samples (expected at least one)", name);
}

Decoder::Decoder(std::unique_ptr<ByteSource> bytes, const AudioLimits& limits)
    : source(std::move(bytes)) {
  const char* container = check_container(*source);
  SF_VIRTUAL_IO io{stream_size, stream_seek, stream_read, nullptr, stream_tell};
  file = sf_open_virtual(&io, SFM_READ, &info, &stream);
  if (file == nullptr)
    fail(Kind::input, "{}: damaged {} header: {}", source->name, container, sf_strerror(nullptr));
  try {
    check_limits(*this, limits);
  } catch (...) {
    sf_close(file);
    throw;
  }
  most = static_cast<int64_t>(limits.max_seconds * info.samplerate);
  interleaved.resize(static_cast<size_t>(kBlock * info.channels));
}

void mix(const float* interleaved, int64_t frames, int channels, float* mono) {
  for (int64_t i = 0; i < frames; i++) {
    float sum = 0;
    for (int c = 0; c < channels; c++) sum += interleaved[i * channels + c];
    mono[i] = sum / static_cast<float>(channels);
  }
}

void check_samples(const Decoder& d, const float* samples, int64_t count) {
  for (int64_t i = 0; i < count; i++)
    if (!(std::abs(samples[i]) <= kLoudest))
      fail(Kind::input, Hint{"float samples lie in [-1, 1): divide integers by their full scale"},
           "{}: sample {} is {} (expected a number between -1 and 1)", d.source->name,
           d.position + i / d.info.channels, samples[i]);
}

int64_t Decoder::read(int64_t wanted, float* mono) {
  float* to = info.channels == 1 ? mono : interleaved.data();
  const int64_t got = sf_readf_float(file, to, std::min(wanted, kBlock));
  if (const int error = sf_error(file))
    fail(Kind::input, Hint{"copy or download it again"}, "{}: damaged near sample {}: {}",
         source->name, position, sf_error_number(error));
  check_samples(*this, to, got * info.channels);
  if (info.channels > 1) mix(to, got, info.channels, mono);
  position += got;
  if (position > most)  // only where the header declares no length
    fail(Kind::input, Hint{"cut it into shorter files"}, "{}: over {} s long (expected less)",
         source->name, most / info.samplerate);
  return got;
}

void Decoder::seek(int64_t frame) {
  if (frame == position) return;
  // MP3 frames borrow bits of earlier ones: after a seek the first samples would be wrong.
  const bool exact = (info.format & SF_FORMAT_TYPEMASK) != SF_FORMAT_MPEG;
  if (exact && sf_seek(file, frame, SEEK_SET) == frame) {
    position = frame;
    return;
  }
  skip(frame - position);
}

void Decoder::skip(int64_t frames) {
  std::vector<float> dropped(kBlock);
  while (frames > 0) {
    const int64_t got = read(frames, dropped.data());
    if (got == 0) return;
    frames -= got;
  }
}

// ---- resampling

// Appends to a vector at 16 kHz; at 16 kHz it copies. What was appended may be taken away.
class Resampler {
 public:
  explicit Resampler(int rate) : rate_(rate) {
    if (rate == kSampleRate) return;
    soxr_error_t error = nullptr;
    const soxr_quality_spec_t quality = soxr_quality_spec(SOXR_HQ, 0);
    soxr_.reset(soxr_create(rate, kSampleRate, 1, &error, nullptr, &quality, nullptr));
    CHECK(soxr_ != nullptr, "soxr, {} Hz: {}", rate, error);
  }

  void push(const float* samples, int64_t count, std::vector<float>& out) {
    if (count == 0) return;
    frames_ += count;
    if (!soxr_)
      out.insert(out.end(), samples, samples + count);
    else
      process(samples, static_cast<size_t>(count), out);
  }

  // Exactly round(frames * 16000 / rate) samples: soxr's own count may differ by one.
  void finish(std::vector<float>& out) {
    if (!soxr_) return;
    process(nullptr, 0, out);
    out.resize(out.size() + static_cast<size_t>(samples_at_16k({frames_, rate_, 1, 0})) - made_);
  }

 private:
  void process(const float* samples, size_t count, std::vector<float>& out) {
    const size_t room = count * kSampleRate / static_cast<size_t>(rate_) + kBlock;
    size_t done = room;
    while (done == room) {  // a full buffer: there may be more
      const size_t at = out.size();
      out.resize(at + room);
      const soxr_error_t error =
          soxr_process(soxr_.get(), samples, count, nullptr, out.data() + at, room, &done);
      CHECK(error == nullptr, "soxr: {}", error);
      out.resize(at + done);
      made_ += done;
      samples = nullptr, count = 0;
    }
  }

  struct Delete {
    void operator()(soxr_t s) const { soxr_delete(s); }
  };
  int rate_;
  int64_t frames_ = 0;
  size_t made_ = 0;  // at 16 kHz
  std::unique_ptr<soxr, Delete> soxr_;
};

// ---- reading

// Frames [first, last) of the file that `range` means.
struct Frames {
  int64_t first, last;
};

Frames frames_of(const std::string& name, int64_t frames, int rate, AudioRange range) {
  const double length = static_cast<double>(frames) / rate;
  const bool whole = std::isinf(range.end);
  if (!(range.start >= 0 && range.start < range.end && range.start < length) ||
      (!whole && range.end > length + kRangeSlack))
    fail(Kind::input, "{}: segment {} to {} s (expected a part of 0 to {:.3f} s)", name,
         range.start, range.end, length);
  const int64_t first = std::llround(range.start * rate);
  const int64_t last = whole ? frames : std::llround(range.end * rate);
  return {first, std::min<int64_t>(last, frames)};
}

}  // namespace

class AudioStream::Cut {
 public:
  Cut(std::unique_ptr<ByteSource> bytes, AudioRange range, const AudioLimits& limits)
      : decoder_(std::move(bytes), limits),
        frames_(frames_of(decoder_.source->name, decoder_.info.frames, decoder_.info.samplerate,
                          range)),
        resampler_(decoder_.info.samplerate) {
    decoder_.seek(frames_.first);
  }

  // Appends the samples of a block; false: they were the last ones.
  bool more(std::vector<float>& out) {
    Decoder& d = decoder_;
    if (d.position < frames_.last) {
      const int64_t got = d.read(frames_.last - d.position, block_.data());
      resampler_.push(block_.data(), got, out);
      decoded_ += got;
      if (got > 0) return true;
    }
    resampler_.finish(out);
    if (d.position < frames_.last && d.info.frames != kUnknown)
      fail(Kind::input, Hint{"the file is cut short: copy or download it again"},
           "{}: ends after {} frames (expected {}, says its header)", d.source->name, d.position,
           d.info.frames);
    if (samples_at_16k({decoded_, d.info.samplerate, 1, 0}) == 0)
      fail(Kind::input, "{}: no samples (expected at least one)", d.source->name);
    return false;
  }

  std::vector<float> all() {
    std::vector<float> out;
    while (more(out)) {
    }
    return out;
  }

 private:
  Decoder decoder_;
  Frames frames_;
  Resampler resampler_;
  std::vector<float> block_ = std::vector<float>(kBlock);
  int64_t decoded_ = 0;  // frames
};

AudioInfo probe_audio(const std::string& path, const AudioLimits& limits) {
  Decoder d(open_bytes(path), limits);
  if (d.info.frames == kUnknown) {
    d.skip(kUnknown);
    d.info.frames = d.position;
  }
  return {d.info.frames, d.info.samplerate, d.info.channels,
          static_cast<double>(d.info.frames) / d.info.samplerate};
}

int64_t samples_at_16k(const AudioInfo& info) {
  return std::llround(static_cast<double>(info.frames) * kSampleRate / info.rate);
}

int64_t count_samples(const std::string& path, AudioRange range, const AudioLimits& limits) {
  AudioInfo info = probe_audio(path, limits);
  const auto [first, last] = frames_of(printable(path), info.frames, info.rate, range);
  info.frames = last - first;
  return samples_at_16k(info);
}

std::vector<float> load_audio(const std::string& path, const AudioLimits& limits) {
  return load_audio(path, AudioRange{}, limits);
}

std::vector<float> load_audio(const std::string& path, AudioRange range,
                              const AudioLimits& limits) {
  return AudioStream::Cut(open_bytes(path), range, limits).all();
}

std::vector<float> decode_audio(std::span<const std::byte> bytes, const std::string& name,
                                AudioRange range, const AudioLimits& limits) {
  return AudioStream::Cut(view_bytes(bytes, name), range, limits).all();
}

AudioStream::AudioStream(const std::string& path, AudioRange range, const AudioLimits& limits)
    : cut_(std::make_unique<Cut>(open_bytes(path), range, limits)) {}

AudioStream::~AudioStream() = default;

void AudioStream::read(int64_t count, std::vector<float>& to) {
  while (!ended_ && std::ssize(pending_) < count) ended_ = !cut_->more(pending_);
  const auto end = pending_.begin() + std::min<int64_t>(count, std::ssize(pending_));
  to.insert(to.end(), pending_.begin(), end);
  pending_.erase(pending_.begin(), end);
}

}  // namespace sft
