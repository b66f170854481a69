#include "engine/audio/decode.h"

#include <sndfile.h>
#include <sys/stat.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <numbers>

#include "tests/doctest.h"
#include "tests/temporary_folder.h"

using namespace sft;

namespace {

void write_bytes(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

std::string read_bytes(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::string file_of(const std::string& path, int format, int rate, int channels,
                    const std::vector<float>& interleaved) {
  SF_INFO info{0, rate, channels, format, 0, 0};
  SNDFILE* file = sf_open(path.c_str(), SFM_WRITE, &info);
  INFO(sf_strerror(nullptr));
  REQUIRE(file != nullptr);
  sf_writef_float(file, interleaved.data(), static_cast<sf_count_t>(interleaved.size()) / channels);
  sf_close(file);
  return path;
}

// 16-bit samples; sf_writef_float would scale them by 32767.
std::string file_of(const std::string& path, int container, const std::vector<int16_t>& x) {
  SF_INFO info{0, 16000, 1, container | SF_FORMAT_PCM_16, 0, 0};
  SNDFILE* file = sf_open(path.c_str(), SFM_WRITE, &info);
  REQUIRE(file != nullptr);
  sf_writef_short(file, x.data(), static_cast<sf_count_t>(x.size()));
  sf_close(file);
  return path;
}

std::vector<float> scaled(std::span<const int16_t> x) {
  std::vector<float> out;
  for (int16_t v : x) out.push_back(static_cast<float>(v) / 32768);
  return out;
}

// Channel c of `channels` is `level` * (1 + c) / mean of those: the mean over channels is `level`.
std::vector<float> sine(double hz, int rate, int64_t frames, int channels = 1, double level = 0.5) {
  std::vector<float> x;
  for (int64_t i = 0; i < frames; i++)
    for (int c = 0; c < channels; c++)
      x.push_back(static_cast<float>(level * 2 * (1 + c) / (channels + 1) *
                                     std::sin(2 * std::numbers::pi * hz * i / rate)));
  return x;
}

// Amplitude at `hz`, by projection on a Hann-windowed tone.
double level_at(const std::vector<float>& x, double hz, double rate = kSampleRate) {
  double re = 0, im = 0, sum = 0;
  for (size_t i = 0; i < x.size(); i++) {
    const double w = 1 - std::cos(2 * std::numbers::pi * (i + 0.5) / x.size());
    const double phase = 2 * std::numbers::pi * hz * i / rate;
    re += w * x[i] * std::cos(phase), im += w * x[i] * std::sin(phase), sum += w;
  }
  return 2 * std::hypot(re, im) / sum;
}

double db(double ratio) { return 20 * std::log10(ratio); }

std::string u32(uint32_t v) { return std::string(reinterpret_cast<const char*>(&v), 4); }
std::string u16(uint16_t v) { return std::string(reinterpret_cast<const char*>(&v), 2); }

// A WAV of `data` bytes, with any field as the test wants it.
struct Wav {
  uint16_t tag = 1, channels = 1, block = 2, bits = 16;
  uint32_t rate = 16000, data_size = 800;
  std::string data = std::string(800, '\1'), before_format = {}, before_data = {};
  std::string bytes() const {
    const std::string format =
        u16(tag) + u16(channels) + u32(rate) + u32(rate * block) + u16(block) + u16(bits);
    const std::string body = "WAVE" + before_format + "fmt " + u32(16) + format + before_data +
                             "data" + u32(data_size) + data;
    return "RIFF" + u32(static_cast<uint32_t>(body.size())) + body;
  }
};

std::vector<float> decode(const std::string& bytes, AudioRange range = {}) {
  return decode_audio(std::as_bytes(std::span(bytes)), "x.wav", range);
}

Error refused(const std::string& bytes) {
  return test::error_of([&] { decode(bytes); });
}

bool has(const std::string& text, const char* part) { return text.find(part) != text.npos; }

}  // namespace

TEST_CASE("audio: 16-bit samples are integer / 32768, exactly") {
  const test::TemporaryFolder folder;
  std::vector<int16_t> x;
  for (int i = -32768; i < 32768; i++) x.push_back(static_cast<int16_t>(i));
  for (int format : {SF_FORMAT_WAV, SF_FORMAT_FLAC, SF_FORMAT_AIFF, SF_FORMAT_NIST, SF_FORMAT_AU})
    EXPECT(load_audio(file_of(folder / "a", format, x)) == scaled(x));
}

TEST_CASE("audio: every format, rate and channel count keeps duration and level") {
  struct Case {
    const char* name;
    int format, rate, channels;
    double tolerance_db = 0.05;
  };
  const Case cases[] = {
      {"wav u8", SF_FORMAT_WAV | SF_FORMAT_PCM_U8, 16000, 1, 0.08},  // written * 127
      {"wav 24", SF_FORMAT_WAV | SF_FORMAT_PCM_24, 48000, 2},
      {"wav 32", SF_FORMAT_WAV | SF_FORMAT_PCM_32, 44100, 6},
      {"wav float", SF_FORMAT_WAV | SF_FORMAT_FLOAT, 96000, 1},
      {"wav double", SF_FORMAT_WAV | SF_FORMAT_DOUBLE, 11025, 2},
      {"wav A-law", SF_FORMAT_WAV | SF_FORMAT_ALAW, 8000, 1},
      {"wav mu-law", SF_FORMAT_WAV | SF_FORMAT_ULAW, 8000, 1},
      {"wav extensible", SF_FORMAT_WAVEX | SF_FORMAT_PCM_16, 22050, 8},
      {"rifx", SF_FORMAT_WAV | SF_FORMAT_PCM_16 | SF_ENDIAN_BIG, 16000, 2},
      {"rf64", SF_FORMAT_RF64 | SF_FORMAT_PCM_16, 16000, 1},
      {"w64", SF_FORMAT_W64 | SF_FORMAT_PCM_24, 16000, 1},
      {"aiff", SF_FORMAT_AIFF | SF_FORMAT_PCM_24, 32000, 2},
      {"aifc float", SF_FORMAT_AIFF | SF_FORMAT_FLOAT, 16000, 1},
      {"aifc little", SF_FORMAT_AIFF | SF_FORMAT_PCM_16 | SF_ENDIAN_LITTLE, 16000, 1},
      {"au", SF_FORMAT_AU | SF_FORMAT_ULAW, 8000, 1},
      {"au little", SF_FORMAT_AU | SF_FORMAT_PCM_16 | SF_ENDIAN_LITTLE, 16000, 1},
      {"caf", SF_FORMAT_CAF | SF_FORMAT_PCM_16, 16000, 1},
      {"sph", SF_FORMAT_NIST | SF_FORMAT_PCM_16, 16000, 2},
      {"sph mu-law", SF_FORMAT_NIST | SF_FORMAT_ULAW, 8000, 1},
      {"flac 16", SF_FORMAT_FLAC | SF_FORMAT_PCM_16, 22050, 2},
      {"flac 24", SF_FORMAT_FLAC | SF_FORMAT_PCM_24, 192000, 1},
      {"vorbis", SF_FORMAT_OGG | SF_FORMAT_VORBIS, 16000, 1, 0.3},
      {"opus", SF_FORMAT_OGG | SF_FORMAT_OPUS, 48000, 1, 0.3},
      {"mp3", SF_FORMAT_MPEG | SF_FORMAT_MPEG_LAYER_III, 44100, 1, 0.3},
  };
  const test::TemporaryFolder folder;
  for (const Case& c : cases) {
    INFO(std::string(c.name));
    const int64_t frames = c.rate + 7;
    const std::string path =
        file_of(folder / "a", c.format, c.rate, c.channels, sine(997, c.rate, frames, c.channels));
    const AudioInfo info = probe_audio(path);
    EXPECT(info.frames == frames);
    EXPECT(info.rate == c.rate);
    EXPECT(info.channels == c.channels);
    EXPECT(std::abs(info.seconds - 1) < 0.001);
    const std::vector<float> x = load_audio(path);
    EXPECT(static_cast<int64_t>(x.size()) == samples_at_16k(info));
    EXPECT(std::abs(static_cast<double>(x.size()) - 16000.0 * frames / c.rate) <= 0.5);
    EXPECT(std::abs(db(level_at(x, 997) / 0.5)) < c.tolerance_db);
  }
}

TEST_CASE("audio: what lies above 8 kHz does not come back as an alias") {
  const test::TemporaryFolder folder;
  for (int rate : {22050, 44100, 48000}) {
    const double hz = 10000;  // folds to 6000
    const std::string path = file_of(folder / "a", SF_FORMAT_WAV | SF_FORMAT_FLOAT, rate, 1,
                                     sine(hz, rate, rate, 1, 0.9));
    EXPECT(db(level_at(load_audio(path), 16000 - hz) / 0.9) < -80);
  }
}

TEST_CASE("audio: a range of a file is that part of the whole") {
  const test::TemporaryFolder folder;
  std::vector<int16_t> x;
  uint32_t state = 1;
  for (int i = 0; i < 50000; i++) {
    state = state * 1664525 + 1013904223;
    x.push_back(static_cast<int16_t>(state >> 16));
  }
  for (int format : {SF_FORMAT_WAV, SF_FORMAT_FLAC, SF_FORMAT_NIST}) {
    const std::string path = file_of(folder / "a", format, x);
    const std::vector<float> part = load_audio(path, AudioRange{1.0, 2.5});
    EXPECT(part == scaled(std::span(x).subspan(16000, 24000)));
    const std::vector<float> tail = load_audio(path, AudioRange{3.0, 3.14});  // ends at 3.125 s
    EXPECT(tail == scaled(std::span(x).subspan(48000)));
    for (AudioRange bad : {AudioRange{2, 2}, AudioRange{2, 1}, AudioRange{-1, 1},
                           AudioRange{3.2, 4}, AudioRange{1, 3.2}, AudioRange{0, std::nan("")}})
      EXPECT(
          has(test::error_of([&] { load_audio(path, bad); }).message, "(expected a part of 0 to"));
  }
  for (int format : {SF_FORMAT_OGG | SF_FORMAT_VORBIS, SF_FORMAT_MPEG | SF_FORMAT_MPEG_LAYER_III}) {
    const std::string path = file_of(folder / "a", format, 16000, 1, sine(440, 16000, 50000));
    const std::vector<float> whole = load_audio(path);
    const std::vector<float> part = load_audio(path, AudioRange{1.0, 2.5});
    REQUIRE(part.size() == 24000);
    for (size_t i = 0; i < part.size(); i++) REQUIRE(std::abs(part[i] - whole[i + 16000]) < 1e-4);
  }
}

TEST_CASE("audio: a stream gives the whole in pieces, and its length is known beforehand") {
  const test::TemporaryFolder folder;
  const int mp3 = SF_FORMAT_MPEG | SF_FORMAT_MPEG_LAYER_III;
  for (const auto& [format, rate] : {std::pair{SF_FORMAT_WAV | SF_FORMAT_PCM_16, 16000},
                                     {mp3, 44100},
                                     {SF_FORMAT_FLAC | SF_FORMAT_PCM_16, 8000}}) {
    const std::string path = file_of(folder / "a", format, rate, 2, sine(440, rate, rate, 2));
    for (const AudioRange range : {AudioRange{}, AudioRange{0.3, 0.77}}) {
      const std::vector<float> whole = load_audio(path, range);
      EXPECT(count_samples(path, range) == std::ssize(whole));
      AudioStream stream(path, range);
      std::vector<float> pieces;
      for (const int64_t count : {1, 0, 7, 4096, 2000, 20000, 1}) {
        const size_t before = pieces.size();
        stream.read(count, pieces);
        EXPECT(pieces.size() == std::min(whole.size(), before + static_cast<size_t>(count)));
      }
      EXPECT(pieces == whole);
    }
  }
}

TEST_CASE("audio: samples that are no numbers, or no audio, are named") {
  const test::TemporaryFolder folder;
  for (float bad : {NAN, INFINITY, -1e30f, 32767.0f}) {
    std::vector<float> x = sine(440, 16000, 10000, 2);
    x[2 * 7000 + 1] = bad;
    const std::string path =
        file_of(folder / "a.wav", SF_FORMAT_WAV | SF_FORMAT_FLOAT, 16000, 2, x);
    const Error e = test::error_of([&] { load_audio(path); });
    EXPECT(e.kind == Kind::input);
    EXPECT(has(e.message, "a.wav: sample 7000 is "));
    EXPECT(load_audio(path, AudioRange{0, 0.4}).size() == 6400);  // the bad one is not read
  }
}

TEST_CASE("audio: what is no audio file says what it is") {
  const test::TemporaryFolder folder;
  const auto error = [](const std::string& path) {
    const Error e = test::error_of([&] { load_audio(path); });
    EXPECT(e.kind == Kind::input);
    EXPECT(e.message.starts_with(path + ": "));
    return e;
  };
  EXPECT(has(error(folder / "none.wav").message, "No such file"));
  EXPECT(has(error(folder.path()).message, "is a folder"));
  write_bytes(folder / "empty.wav", "");
  EXPECT(has(error(folder / "empty.wav").message, "the file is empty"));
  REQUIRE(mkfifo((folder / "pipe").c_str(), 0600) == 0);
  EXPECT(has(error(folder / "pipe").message, "is a pipe"));
  write_bytes(folder / "page.wav", "<!DOCTYPE html>\n<title>404</title>\n");
  EXPECT(has(error(folder / "page.wav").message, "begins with '<!DOCTYPE html>"));
  EXPECT(has(error(folder / "page.wav").hint, "text file"));
  write_bytes(folder / "short", "RIFF");
  EXPECT(has(error(folder / "short").message, "begins with 'RIFF'"));
  write_bytes(folder / "b.wav", std::string("PK\3\4\0\0\0\0\0\0\0\0", 12));
  EXPECT(has(error(folder / "b.wav").message, "begins with 'PK\\x03\\x04"));
}

TEST_CASE("audio: exotic codings never reach libsndfile") {
  const test::TemporaryFolder folder;
  const std::vector<float> x = sine(440, 8000, 8000);
  struct Case {
    int format;
    const char* says;
  };
  for (const Case& c : {Case{SF_FORMAT_WAV | SF_FORMAT_IMA_ADPCM, "IMA ADPCM"},
                        Case{SF_FORMAT_WAV | SF_FORMAT_MS_ADPCM, "Microsoft ADPCM"},
                        Case{SF_FORMAT_WAV | SF_FORMAT_GSM610, "GSM 6.10"},
                        Case{SF_FORMAT_W64 | SF_FORMAT_IMA_ADPCM, "IMA ADPCM"},
                        Case{SF_FORMAT_AIFF | SF_FORMAT_IMA_ADPCM, "'ima4'"},
                        Case{SF_FORMAT_AIFF | SF_FORMAT_GSM610, "'GSM '"},
                        Case{SF_FORMAT_AU | SF_FORMAT_G721_32, "coding 23"},
                        Case{SF_FORMAT_CAF | SF_FORMAT_ALAC_16, "'alac'"},
                        Case{SF_FORMAT_VOC | SF_FORMAT_PCM_16, "begins with 'Creative Voice"}}) {
    const std::string path = file_of(folder / "a", c.format, 8000, 1, x);
    const Error e = test::error_of([&] { load_audio(path); });
    EXPECT(e.kind == Kind::input);
    EXPECT_MESSAGE(has(e.message, c.says), e.message);
  }
}

TEST_CASE("audio: SPH, and SPH compressed with shorten") {
  const test::TemporaryFolder folder;
  const std::vector<float> x = sine(440, 16000, 400);
  const std::string path =
      file_of(folder / "a.sph", SF_FORMAT_NIST | SF_FORMAT_PCM_16, 16000, 1, x);
  std::string bytes = read_bytes(path);
  EXPECT(decode(bytes).size() == 400);
  EXPECT(has(refused(bytes.substr(0, bytes.size() - 1)).message, "holds 799 bytes of samples"));
  const size_t at = bytes.find("sample_coding -s3 pcm");
  REQUIRE(at != bytes.npos);
  const std::string shorten = "sample_coding -s26 pcm,embedded-shorten-v2.00";
  std::string packed = bytes.substr(0, at) + shorten + bytes.substr(at + 21);
  EXPECT(has(refused(packed).message, "SPH compressed with shorten"));
}

TEST_CASE("audio: a file cut short is never taken for a shorter one") {
  const test::TemporaryFolder folder;
  const std::vector<float> x = sine(440, 16000, 5000, 2);
  for (int format : {SF_FORMAT_WAV, SF_FORMAT_W64, SF_FORMAT_RF64, SF_FORMAT_AIFF, SF_FORMAT_AU,
                     SF_FORMAT_CAF, SF_FORMAT_NIST, SF_FORMAT_FLAC}) {
    const std::string whole =
        read_bytes(file_of(folder / "a", format | SF_FORMAT_PCM_16, 16000, 2, x));
    const size_t step = format == SF_FORMAT_FLAC ? 97 : 13;
    for (size_t n = 0; n < whole.size(); n += n < 200 ? 1 : step) {
      INFO(format, " ", n);
      EXPECT(refused(whole.substr(0, n)).kind == Kind::input);
    }
    EXPECT(decode(whole).size() == 5000);
  }
  // MP3 declares its length in a Xing header.
  const int mp3 = SF_FORMAT_MPEG | SF_FORMAT_MPEG_LAYER_III;
  const std::string whole = read_bytes(file_of(folder / "a", mp3, 16000, 2, x));
  EXPECT(
      has(refused(whole.substr(0, whole.size() / 2)).message, "(expected 5000, says its header"));
}

TEST_CASE("audio: a damaged FLAC gives an error or the same samples") {
  const test::TemporaryFolder folder;
  const std::vector<float> x = sine(440, 16000, 5000);
  const std::string whole =
      read_bytes(file_of(folder / "a", SF_FORMAT_FLAC | SF_FORMAT_PCM_16, 16000, 1, x));
  const std::vector<float> right = decode(whole);
  int detected = 0, named = 0, tried = 0;
  for (size_t n = 42; n < whole.size(); n += 5, tried++) {
    std::string bytes = whole;
    bytes[n] = static_cast<char>(bytes[n] ^ 0x10);
    try {
      EXPECT(decode(bytes) == right);
    } catch (const Error& e) {
      EXPECT(e.kind == Kind::input);
      detected++;
      named += has(e.message, "damaged near sample ");
    }
  }
  EXPECT(named > 0);
  EXPECT(detected > tried / 2);
}

TEST_CASE("audio: tags, streams without a length, chains") {
  const test::TemporaryFolder folder;
  const std::vector<float> x = sine(440, 16000, 5000);
  const auto bytes = [&](int format) {
    return read_bytes(file_of(folder / "a", format, 16000, 1, x));
  };
  const std::string flac = bytes(SF_FORMAT_FLAC | SF_FORMAT_PCM_16);
  const std::string mp3 = bytes(SF_FORMAT_MPEG | SF_FORMAT_MPEG_LAYER_III);
  const std::string tag = std::string("ID3\4\0\0\0\0\2\0", 10) + std::string(256, '\0');
  EXPECT(decode(tag + flac).size() == 5000);
  EXPECT(decode(tag + mp3).size() == 5000);
  EXPECT(has(refused(tag + Wav{}.bytes()).message, "'RIFF' behind its ID3 tag"));
  EXPECT(has(refused(tag).message, "the header ends early"));

  std::string streamed = flac;  // 36 bits of length := 0, not known
  streamed[21] = static_cast<char>(streamed[21] & 0xf0);
  streamed.replace(22, 4, 4, '\0');
  EXPECT(decode(streamed).size() == 5000);
  write_bytes(folder / "b.flac", streamed);
  EXPECT(probe_audio(folder / "b.flac").frames == 5000);
  EXPECT(has(test::error_of([&] { probe_audio(folder / "b.flac", {.max_seconds = 0.1}); }).message,
             "over 0 s long"));

  for (int coding : {SF_FORMAT_VORBIS, SF_FORMAT_OPUS}) {
    const std::string ogg = bytes(SF_FORMAT_OGG | coding);
    EXPECT(decode(ogg).size() == 5000);
    EXPECT(has(refused(ogg.substr(0, ogg.rfind("OggS"))).message, "without a last page"));
    std::string other = ogg;
    for (size_t at = 0; at != ogg.npos; at = ogg.find("OggS", at + 1)) other[at + 14] ^= 1;
    EXPECT(has(refused(ogg + other).message, "several Ogg streams"));
  }
}

TEST_CASE("audio: hostile and odd WAV headers") {
  EXPECT(decode(Wav{}.bytes()).size() == 400);
  EXPECT(decode(Wav{.before_format = "JUNK" + u32(3) + "abc" + '\0'}.bytes()).size() == 400);
  EXPECT(decode(Wav{.before_data = "LIST" + u32(4) + "INFO"}.bytes()).size() == 400);
  SUBCASE("streamed: no length in the header") {
    for (uint32_t size : {0xffffffffu, 0x7ffff000u})
      EXPECT(decode(Wav{.data_size = size}.bytes()).size() == 400);
    EXPECT(refused(Wav{.data_size = 0}.bytes()).kind == Kind::input);
  }
  SUBCASE("no samples, fewer than declared, fewer than one model frame") {
    EXPECT(has(refused(Wav{.data_size = 0, .data = ""}.bytes()).message, "no samples"));
    EXPECT(has(refused(Wav{.data_size = 802}.bytes()).message, "holds 800 bytes"));
    for (uint32_t n : {1u, 399u, 400u, 401u})
      EXPECT(decode(Wav{.data_size = 2 * n, .data = std::string(2 * n, '\1')}.bytes()).size() == n);
  }
  SUBCASE("fields that cannot be") {
    for (const Wav& bad :
         {Wav{.channels = 0}, Wav{.channels = 65535}, Wav{.block = 0}, Wav{.block = 1},
          Wav{.channels = 65, .block = 130}, Wav{.bits = 33}, Wav{.rate = 0}, Wav{.rate = 999},
          Wav{.rate = 768001}, Wav{.tag = 0x11}, Wav{.tag = 2}, Wav{.tag = 0xfffe}})
      EXPECT(refused(bad.bytes()).kind == Kind::input);
  }
  SUBCASE("samples before the format, a chunk behind the end, thousands of chunks") {
    std::string bytes = Wav{}.bytes();
    EXPECT(refused(Wav{.before_format = "data" + u32(2) + "ab"}.bytes()).kind == Kind::input);
    EXPECT(refused(Wav{.before_data = "LIST" + u32(0xfffffff0)}.bytes()).kind == Kind::input);
    std::string many;
    for (int i = 0; i < 5000; i++) many += "JUNK" + u32(0);
    EXPECT(refused(Wav{.before_data = many}.bytes()).kind == Kind::input);
  }
}

TEST_CASE("audio: an RF64 of more than 4 GiB, read at its end") {
  const test::TemporaryFolder folder;
  const std::string path = folder / "long.wav";
  const int64_t data = int64_t{5} << 30;  // 5.8 h of 16 kHz, 8 channels, 16 bits, mostly a hole
  const auto u64 = [](int64_t v) { return std::string(reinterpret_cast<const char*>(&v), 8); };
  const std::string format = u16(1) + u16(8) + u32(16000) + u32(256000) + u16(16) + u16(16);
  const std::string head = "RF64" + u32(~0u) + "WAVEds64" + u32(28) + u64(data + 72) + u64(data) +
                           u64(data / 16) + u32(0) + "fmt " + u32(16) + format + "data" + u32(~0u);
  write_bytes(path, head);
  std::filesystem::resize_file(path, head.size() + static_cast<uint64_t>(data));
  std::fstream(path, std::ios::in | std::ios::out | std::ios::binary).seekp(-16, std::ios::end)
      << std::string("\0\x10\0\x10\0\x10\0\x10\0\x10\0\x10\0\x10\0\x10", 16);
  const AudioInfo info = probe_audio(path);
  EXPECT(info.frames == data / 16);
  const std::vector<float> x = load_audio(path, AudioRange{info.seconds - 1, info.seconds});
  REQUIRE(x.size() == 16000);
  EXPECT(x[15998] == 0);
  EXPECT(x[15999] == 0.125f);
}

TEST_CASE("audio: limits") {
  const std::string bytes = Wav{}.bytes();
  const auto error = [&](AudioLimits limits) {
    return test::error_of(
               [&] { decode_audio(std::as_bytes(std::span(bytes)), "x.wav", {}, limits); })
        .message;
  };
  EXPECT(error({.max_seconds = 0.024}) == "x.wav: 0 s long (expected at most 0.024)");
  EXPECT(error({.min_rate = 16001}) == "x.wav: 16000 Hz (expected 16001 to 768000)");
  EXPECT(error({.max_channels = 0}) == "x.wav: 1 channels (expected 1 to 0)");
}
