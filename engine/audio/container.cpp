#include "engine/audio/container.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "engine/check.h"

namespace sft {
namespace {

using std::string_view;

constexpr int kMostChunks = 4096;           // before the samples begin
constexpr uint32_t kStreamed = 0x7fff0000;  // sizes from here on: the writer could not seek back

// Bounds-checked reads of a header.
struct Reader {
  const ByteSource& source;
  bool big_endian = false;

  bool has(int64_t at, int64_t count) const { return at >= 0 && count <= source.size - at; }

  std::string text(int64_t at, size_t count) const {
    std::string bytes(count, '\0');
    if (!has(at, static_cast<int64_t>(count)) || source.read(at, bytes.data(), count) != count)
      fail(Kind::input, "{}: the header ends early, at byte {} (expected {} more)", source.name,
           source.size, count);
    return bytes;
  }

  uint64_t number(int64_t at, size_t bytes) const {
    const std::string raw = text(at, bytes);
    uint64_t value = 0;
    for (size_t i = 0; i < bytes; i++)
      value = value << 8 | static_cast<uint8_t>(raw[big_endian ? i : bytes - 1 - i]);
    return value;
  }
  uint32_t u16(int64_t at) const { return static_cast<uint32_t>(number(at, 2)); }
  uint32_t u32(int64_t at) const { return static_cast<uint32_t>(number(at, 4)); }
};

[[noreturn]] void refuse(const Reader& r, string_view container, string_view coding) {
  fail(Kind::input, Hint{"convert it: ffmpeg -i IN -c:a pcm_s16le OUT.wav"},
       "{}: {} holds {} (expected integer PCM, float, A-law or mu-law)", r.source.name, container,
       coding);
}

void require_length(const Reader& r, int64_t at, uint64_t declared) {
  const int64_t there = std::max<int64_t>(0, r.source.size - at);
  if (declared > static_cast<uint64_t>(there))
    fail(Kind::input, Hint{"the file is cut short: copy or download it again"},
         "{}: holds {} bytes of samples (expected {}, says its header)", r.source.name, there,
         declared);
}

// ---- RIFF: WAV, RF64, RIFX

std::string wave_coding(uint32_t tag) {
  switch (tag) {
    case 0x02:
      return "Microsoft ADPCM";
    case 0x11:
      return "IMA ADPCM";
    case 0x31:
      return "GSM 6.10";
    case 0x40:
    case 0x45:
    case 0x14:
      return "G.72x ADPCM";
    case 0x50:
    case 0x55:
      return "MPEG audio";
    default:
      return fmt::format("coding 0x{:04x}", tag);
  }
}

void check_wave_format(const Reader& r, string_view container, int64_t at, uint64_t size) {
  const uint32_t channels = r.u16(at + 2), block = r.u16(at + 12), bits = r.u16(at + 14);
  uint32_t tag = r.u16(at);
  if (tag == 0xfffe) {  // extensible: the tag is the head of a GUID
    constexpr string_view tail("\x00\x00\x00\x00\x10\x00\x80\x00\x00\xaa\x00\x38\x9b\x71", 14);
    constexpr string_view tail_rifx("\x00\x00\x00\x10\x80\x00\x00\xaa\x00\x38\x9b\x71", 12);
    if (size < 40) refuse(r, container, "an extensible format that is cut short");
    const bool known = r.big_endian ? r.text(at + 28, 12) == tail_rifx && r.u16(at + 24) == 0
                                    : r.text(at + 26, 14) == tail;
    tag = r.u16(at + (r.big_endian ? 26 : 24));
    if (!known) refuse(r, container, "an unknown extensible format");
  }
  if (tag != 1 && tag != 3 && tag != 6 && tag != 7) refuse(r, container, wave_coding(tag));
  if (channels == 0 || block % channels != 0 || block / channels > 8 || bits > block / channels * 8)
    fail(Kind::input,
         "{}: {} format of {} channels, {} bits in blocks of {} bytes (expected "
         "blocks of channels x bytes per sample)",
         r.source.name, container, channels, bits, block);
}

void check_wav(Reader r) {
  const std::string magic = r.text(0, 4);
  const char* container = magic == "RF64" ? "RF64" : "WAV";
  r.big_endian = magic == "RIFX";
  uint64_t long_size = 0;
  bool format = false;
  int64_t at = 12;
  for (int chunk = 0; chunk < kMostChunks && r.has(at, 8); chunk++) {
    const std::string id = r.text(at, 4);
    const uint32_t size = r.u32(at + 4);
    if (id == "ds64") long_size = r.number(at + 16, 8);
    if (id == "fmt ") {
      check_wave_format(r, container, at + 8, size);
      format = true;
    }
    if (id == "data") {
      if (!format) break;
      if (magic == "RF64" && size == 0xffffffff) return require_length(r, at + 8, long_size);
      if (size < kStreamed || r.has(at + 8, size)) require_length(r, at + 8, size);
      return;
    }
    at += 8 + int64_t{size} + (size & 1);
  }
  fail(Kind::input, "{}: {} without {} (expected a 'fmt ' chunk, then a 'data' chunk)",
       r.source.name, container, format ? "samples" : "a format before its samples");
}

// Sony Wave64: GUIDs in place of names, 64-bit sizes that include the 24 bytes of chunk header.
void check_w64(const Reader& r) {
  bool format = false;
  int64_t at = 40;
  for (int chunk = 0; chunk < kMostChunks && r.has(at, 24); chunk++) {
    const std::string id = r.text(at, 4);
    const uint64_t size = r.number(at + 16, 8);
    if (id == "fmt ") {
      check_wave_format(r, "W64", at + 24, size - 24);
      format = true;
    }
    if (id == "data" && format) return require_length(r, at, size);
    if (size < 24 || size > static_cast<uint64_t>(r.source.size)) break;
    at += static_cast<int64_t>((size + 7) / 8 * 8);
  }
  fail(Kind::input, "{}: W64 without format or samples (expected a 'fmt ' chunk, then 'data')",
       r.source.name);
}

// ---- AIFF, AU, CAF

void check_compression(const Reader& r, string_view container, const std::string& coding) {
  constexpr std::array<string_view, 16> plain = {"NONE", "twos", "sowt", "raw ", "fl32", "FL32",
                                                 "fl64", "FL64", "alaw", "ALAW", "ulaw", "ULAW",
                                                 "in24", "in32", "lpcm", "23ni"};
  if (std::find(plain.begin(), plain.end(), coding) == plain.end())
    refuse(r, container, fmt::format("'{}'", printable(coding)));
}

void check_aiff(Reader r) {
  r.big_endian = true;
  const bool compressed = r.text(8, 4) == "AIFC";
  bool format = false;
  int64_t at = 12;
  for (int chunk = 0; chunk < kMostChunks && r.has(at, 8); chunk++) {
    const std::string id = r.text(at, 4);
    const uint32_t size = r.u32(at + 4);
    if (id == "COMM") {
      if (compressed) check_compression(r, "AIFC", r.text(at + 26, 4));
      format = true;
    }
    if (id == "SSND") {  // libsndfile also takes samples before their format
      require_length(r, at + 8, size);
      if (format) return;
    }
    at += 8 + int64_t{size} + (size & 1);
  }
  if (!format)
    fail(Kind::input, "{}: AIFF without a format (expected a 'COMM' chunk)", r.source.name);
}

void check_au(Reader r) {
  r.big_endian = r.text(0, 4) == ".snd";
  const uint32_t start = r.u32(4), size = r.u32(8), coding = r.u32(12);
  if (!(coding >= 1 && coding <= 7) && coding != 27)
    refuse(r, "AU", fmt::format("coding {}", coding));
  if (size != 0xffffffff) require_length(r, start, size);
}

void check_caf(Reader r) {
  r.big_endian = true;
  if (r.text(8, 4) != "desc")
    fail(Kind::input, "{}: CAF without a format (expected a 'desc' chunk first)", r.source.name);
  check_compression(r, "CAF", r.text(28, 4));
  int64_t at = 8;
  for (int chunk = 0; chunk < kMostChunks && r.has(at, 12); chunk++) {
    const uint64_t size = r.number(at + 4, 8);
    const bool samples = r.text(at, 4) == "data";
    if (samples && size != ~uint64_t{0}) require_length(r, at + 12, size);
    if (samples || size > static_cast<uint64_t>(r.source.size)) return;
    at += 12 + static_cast<int64_t>(size);
  }
}

// ---- NIST SPHERE: text fields "name -type value", one a line

std::string sphere_field(string_view header, string_view name) {
  size_t at = header.find(fmt::format("\n{} ", name));
  if (at == header.npos) return "";
  at = header.find(' ', at + name.size() + 2);  // behind the type
  return at == header.npos ? ""
                           : std::string(header.substr(at + 1, header.find('\n', at + 1) - at - 1));
}

uint64_t sphere_number(string_view header, string_view name, uint64_t otherwise) {
  const std::string value = sphere_field(header, name);
  return value.empty() ? otherwise : std::strtoull(value.c_str(), nullptr, 10);
}

void check_sphere(const Reader& r) {
  constexpr size_t kHeader = 1024;
  const std::string whole = r.text(0, kHeader);
  const string_view header = string_view(whole).substr(0, whole.find("end_head"));
  const std::string coding = sphere_field(header, "sample_coding");
  if (coding.find("shorten") != coding.npos)
    fail(Kind::input, Hint{"decompress it first: w_decode -o pcm IN OUT (NIST SPHERE tools)"},
         "{}: SPH compressed with shorten (expected sample_coding pcm)", r.source.name);
  if (!coding.empty() && coding != "pcm" && coding != "ulaw" && coding != "mu-law" &&
      coding != "alaw")
    refuse(r, "SPH", printable(coding));
  const uint64_t frames = sphere_number(header, "sample_count", 0);
  const uint64_t width = sphere_number(header, "sample_n_bytes", 2);
  const uint64_t channels = sphere_number(header, "channel_count", 1);
  uint64_t bytes = 0;
  if (__builtin_mul_overflow(frames, width, &bytes) ||
      __builtin_mul_overflow(bytes, channels, &bytes))
    bytes = ~uint64_t{0};
  require_length(r, kHeader, bytes);
}

// ---- compressed streams

// A chain of streams would be read up to the end of its first, a cut one as a shorter one.
void check_last_page(const Reader& r) {
  constexpr int64_t kLongestPage = 27 + 255 + 255 * 255;
  const int64_t start = std::max<int64_t>(0, r.source.size - kLongestPage);
  const std::string tail = r.text(start, static_cast<size_t>(r.source.size - start));
  const size_t page = tail.rfind("OggS");
  if (page == tail.npos || tail.size() - page < 27 || !(tail[page + 5] & 4))
    fail(Kind::input, Hint{"the file is cut short: copy or download it again"},
         "{}: Ogg without a last page (expected one marked as the end of its stream)",
         r.source.name);
  if (tail.substr(page + 14, 4) != r.text(14, 4))
    fail(Kind::input, Hint{"convert it to one stream: ffmpeg -i IN OUT.flac"},
         "{}: several Ogg streams (expected one)", r.source.name);
}

void check_ogg(const Reader& r) {
  const int64_t payload = 27 + static_cast<int64_t>(r.number(26, 1));
  const std::string head = r.text(payload, 8);
  const bool known = head == "OpusHead" || head.starts_with("\x01vorbis") ||
                     head.starts_with(
                         "\x7f"
                         "FLAC");
  if (!known)
    fail(Kind::input, "{}: Ogg holds '{}' (expected Vorbis, Opus or FLAC)", r.source.name,
         printable(head));
  check_last_page(r);
}

bool mpeg_sync(const std::string& head) {
  return head.size() >= 2 && head[0] == '\xff' && (static_cast<uint8_t>(head[1]) & 0xe0) == 0xe0;
}

const char* check_tagged(const Reader& r) {
  int64_t size = 10;
  for (int i = 0; i < 4; i++)
    size += static_cast<int64_t>(r.number(6 + i, 1) & 0x7f) << (7 * (3 - i));
  const std::string head = r.text(size, 4);
  if (mpeg_sync(head)) return "MP3";
  if (head == "fLaC") return "FLAC";
  fail(Kind::input, "{}: '{}' behind its ID3 tag (expected MP3 or FLAC)", r.source.name,
       printable(head));
}

bool is_text(const Reader& r) {
  std::string head(static_cast<size_t>(std::min<int64_t>(64, r.source.size)), '\0');
  head.resize(r.source.read(0, head.data(), head.size()));
  return std::all_of(head.begin(), head.end(), [](char c) {
    return static_cast<uint8_t>(c) >= 32 || c == '\n' || c == '\r' || c == '\t';
  });
}

[[noreturn]] void unknown(const Reader& r) {
  const size_t count = static_cast<size_t>(std::min<int64_t>(16, r.source.size));
  fail(Kind::input, Hint{is_text(r) ? "this is a text file, whatever its name says" : ""},
       "{}: begins with '{}' (expected WAV, RF64, W64, AIFF, AU, CAF, FLAC, Ogg, MP3 or SPH)",
       r.source.name, printable(r.text(0, count)));
}

}  // namespace

const char* check_container(const ByteSource& source) {
  const Reader r{source};
  const std::string head = r.has(0, 12) ? r.text(0, 12) : "";
  const string_view magic = string_view(head).substr(0, 4),
                    form = string_view(head).substr(std::min<size_t>(8, head.size()));
  const bool riff = magic == "RIFF" || magic == "RIFX" || magic == "RF64";
  if (riff && form == "WAVE") return check_wav(r), magic == "RF64" ? "RF64" : "WAV";
  if (magic == "riff") return check_w64(r), "W64";
  if (magic == "FORM" && (form == "AIFF" || form == "AIFC")) return check_aiff(r), "AIFF";
  if (magic == ".snd" || magic == "dns.") return check_au(r), "AU";
  if (magic == "caff") return check_caf(r), "CAF";
  if (head.substr(0, 7) == "NIST_1A") return check_sphere(r), "SPH";
  if (magic == "OggS") return check_ogg(r), "Ogg";
  if (magic == "fLaC") return "FLAC";
  if (magic.substr(0, 3) == "ID3") return check_tagged(r);
  if (mpeg_sync(head)) return "MP3";
  unknown(r);
}

}  // namespace sft
