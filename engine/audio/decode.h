// Audio files to samples: mono float32 at 16 kHz in [-1, 1), what every model here takes.
//
// Reads WAV, RF64, W64, AIFF, AU, CAF, FLAC, Ogg (Vorbis, Opus, FLAC), MP3 and NIST SPH through
// libsndfile, behind the filter of container.h. Channels are averaged, other rates resampled by
// soxr (HQ: 20 bits, images and aliases below -120 dB). 16-bit mono at 16 kHz is integer / 32768
// exactly (models.md 1.1). An utterance has round(frames * 16000 / rate) samples.
//
// Errors (input), as "PATH: WHAT (expected ...)": what container.h refuses; outside the limits; no
// samples; a sample that is not finite, or larger than 64 (a float file in integer scale); fewer
// frames than declared; a damaged stream.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace sft {

constexpr int kSampleRate = 16000;

struct AudioInfo {
  int64_t frames;  // at the file's own rate
  int rate;        // Hz
  int channels;
  double seconds;
};

struct AudioLimits {
  double max_seconds = 24 * 3600;
  int max_channels = 64;
  int min_rate = 1000, max_rate = 768000;  // Hz
};

// A part of a file, in seconds. An end up to 20 ms behind the end of the file is cut to it (times
// in transcripts are rounded); more is an error.
struct AudioRange {
  double start = 0;
  double end = std::numeric_limits<double>::infinity();
};

// From the header; decodes nothing, except where the header declares no length (streamed FLAC).
AudioInfo probe_audio(const std::string& path, const AudioLimits& limits = {});

// The samples that load_audio of a whole file returns.
int64_t samples_at_16k(const AudioInfo& info);

std::vector<float> load_audio(const std::string& path, const AudioLimits& limits = {});

// Seeks to the range where the format can, so that a segment of an hour costs what it is long.
std::vector<float> load_audio(const std::string& path, AudioRange range,
                              const AudioLimits& limits = {});

// The same from memory; `name` stands for the path in messages.
std::vector<float> decode_audio(std::span<const std::byte> bytes, const std::string& name,
                                AudioRange range = {}, const AudioLimits& limits = {});

// How many samples load_audio of this range gives, from the header.
int64_t count_samples(const std::string& path, AudioRange range, const AudioLimits& limits = {});

// What load_audio gives, piece by piece: a long file is decoded once, forward.
class AudioStream {
 public:
  explicit AudioStream(const std::string& path, AudioRange range = {},
                       const AudioLimits& limits = {});
  ~AudioStream();

  // Appends the next `count` samples to `to`; fewer at the end, and then none.
  void read(int64_t count, std::vector<float>& to);

  class Cut;

 private:
  std::unique_ptr<Cut> cut_;
  std::vector<float> pending_;  // decoded, and not read yet
  bool ended_ = false;
};

}  // namespace sft
