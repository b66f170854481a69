#include "engine/formats/zip.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <unordered_set>

#include "engine/check.h"
#include "engine/formats/byte_reader.h"
#include "engine/formats/tensor_file.h"

namespace sft {

namespace {

constexpr uint32_t kLocal = 0x04034b50, kCentral = 0x02014b50, kEnd = 0x06054b50;
constexpr uint32_t kEnd64 = 0x06064b50, kLocator64 = 0x07064b50, kDescriptor = 0x08074b50;
constexpr uint64_t kEndBytes = 22, kEnd64Bytes = 56, kLocatorBytes = 20, kCentralBytes = 46;
constexpr uint64_t kLocalBytes = 30;
constexpr uint64_t kMostEntries = 1'000'000, kLongestName = 4096;
constexpr uint32_t kAll32 = 0xffffffff;
constexpr uint16_t kEncrypted = 1, kSizesFollow = 1 << 3;
constexpr uint16_t kExtra64 = 1;

void expect_signature(ByteReader& in, uint32_t wanted, std::string_view what) {
  const uint32_t signature = in.u32(what);
  if (signature != wanted)
    in.bad(what, "begins before this with {:#010x} (expected {:#010x})", signature, wanted);
}

struct Directory {
  uint64_t entries = 0, bytes = 0, offset = 0;
  uint64_t end = 0;  // where the records after it begin
};

// Reads from any place of the file, up to `end`.
class Archive {
 public:
  Archive(const std::string& path, std::span<const std::byte> file)
      : path_(printable(path)), file_(file) {}

  ByteReader at(uint64_t offset, uint64_t end) const {
    ByteReader in(path_, file_.first(end));
    in.skip(offset, "place of a zip record");
    return in;
  }

  Directory directory() const {
    if (file_.size() < kEndBytes)
      fail(Kind::input, "{}: {} bytes are no zip archive (is it cut off?)", path_, file_.size());
    const uint64_t at_end = file_.size() - kEndBytes;
    ByteReader in = at(at_end, file_.size());
    if (in.u32("end of the zip directory") != kEnd)
      in.bad("end of the zip directory", "is not the end of the file (is it cut off?)");
    if (in.u32("disk number") != 0) in.bad("disk number", "is not 0 (a file in parts)");
    Directory d;
    const uint16_t here = in.u16("number of entries");
    d.entries = in.u16("number of entries");
    if (here != d.entries) in.bad("number of entries", "is {} and {}", here, d.entries);
    d.bytes = in.u32("size of the zip directory");
    d.offset = in.u32("offset of the zip directory");
    if (in.u16("comment") != 0) in.bad("comment", "is not empty");
    d.end = at_end;
    return with_zip64(d);
  }

 private:
  // The record of 64-bit numbers, where a locator stands before the end record.
  Directory with_zip64(const Directory& small) const {
    if (small.end < kLocatorBytes + kEnd64Bytes) return small;
    const uint64_t locator = small.end - kLocatorBytes;
    ByteReader in = at(locator, file_.size());
    if (in.u32("zip64 locator") != kLocator64) return small;
    if (in.u32("zip64 disk") != 0) in.bad("zip64 disk", "is not 0");
    const uint64_t offset = in.u64("offset of the zip64 record");
    if (offset != locator - kEnd64Bytes)
      in.bad("offset of the zip64 record", "is {} (expected {})", offset, locator - kEnd64Bytes);
    if (in.u32("number of disks") > 1) in.bad("number of disks", "is above 1");
    return zip64_record(small, offset);
  }
  Directory zip64_record(const Directory& small, uint64_t offset) const {
    ByteReader in = at(offset, file_.size());
    expect_signature(in, kEnd64, "zip64 record");
    if (const uint64_t bytes = in.u64("size of the zip64 record"); bytes != kEnd64Bytes - 12)
      in.bad("size of the zip64 record", "is {} (expected {})", bytes, kEnd64Bytes - 12);
    in.skip(4, "zip64 versions");
    if (in.u64("zip64 disks") != 0) in.bad("zip64 disks", "are not 0");
    Directory d;
    const uint64_t here = in.u64("number of entries");
    d.entries = in.u64("number of entries");
    d.bytes = in.u64("size of the zip directory");
    d.offset = in.u64("offset of the zip directory");
    d.end = offset;
    if (here != d.entries || !agrees(small.entries, d.entries, 0xffff) ||
        !agrees(small.bytes, d.bytes, kAll32) || !agrees(small.offset, d.offset, kAll32))
      in.bad("zip64 record", "says {} entries in {} bytes at {}, the end record {}, {}, {}",
             d.entries, d.bytes, d.offset, small.entries, small.bytes, small.offset);
    return d;
  }
  static bool agrees(uint64_t small, uint64_t large, uint64_t limit) {
    return small == large || small == limit;
  }

  std::string path_;
  std::span<const std::byte> file_;
};

struct CentralEntry {
  ZipEntry entry;
  uint64_t head = 0;  // of its local header
  uint16_t flags = 0;
};

// Replaces by 64-bit numbers those of `fields` that say 0xffffffff, in this order.
void read_zip64(ByteReader& in, uint64_t bytes, std::array<uint64_t*, 3> fields) {
  for (uint64_t left = bytes; left > 0;) {
    if (left < 4) in.bad("extra field", "ends within its head");
    const uint16_t id = in.u16("extra field"), size = in.u16("size of the extra field");
    left -= 4;
    if (size > left) in.bad("extra field", "is {} bytes of {}", size, left);
    left -= size;
    uint64_t rest = size;
    for (uint64_t* field : fields) {
      if (id != kExtra64 || *field != kAll32) continue;
      if (rest < 8) in.bad("zip64 field", "is too short");
      *field = in.u64("zip64 field");
      rest -= 8;
    }
    in.skip(rest, "extra field");
  }
}

CentralEntry read_central(ByteReader& in) {
  expect_signature(in, kCentral, "entry of the zip directory");
  CentralEntry e;
  in.skip(4, "versions");
  e.flags = in.u16("flags");
  if (e.flags & kEncrypted) in.bad("flags", "say that it is encrypted");
  if (const uint16_t method = in.u16("compression"); method != 0)
    in.bad("compression", "is method {} (expected 0, stored)", method);
  in.skip(4, "time");
  e.entry.crc = in.u32("crc");
  uint64_t stored = in.u32("stored size");
  e.entry.bytes = in.u32("size");
  const uint16_t name = in.u16("length of the name"), extra = in.u16("size of the extra fields");
  if (in.u16("comment") != 0) in.bad("comment", "is not empty");
  if (in.u16("disk number") != 0) in.bad("disk number", "is not 0");
  in.skip(6, "attributes");
  e.head = in.u32("offset of the entry");
  e.entry.name = in.string(name, kLongestName, "name of the entry");
  check_name(in.path(), "name of a zip entry", e.entry.name);
  if (e.entry.name.find('\\') != std::string::npos)
    in.bad("name of the entry", "has a backslash: {}", printable(e.entry.name));
  read_zip64(in, extra, {&e.entry.bytes, &stored, &e.head});
  if (stored != e.entry.bytes)
    in.bad("stored size", "is {} for {} bytes (expected the same)", stored, e.entry.bytes);
  return e;
}

bool is_told(uint64_t local, uint64_t central) { return local != kAll32 && local != central; }

// The header before the content says the same as the directory; returns where the content begins.
uint64_t check_local(ByteReader& in, const CentralEntry& e) {
  expect_signature(in, kLocal, "head of a zip entry");
  in.skip(2, "version");
  if (const uint16_t flags = in.u16("flags"); flags != e.flags)
    in.bad("flags", "are {:#x}, in the directory {:#x}", flags, e.flags);
  if (in.u16("compression") != 0) in.bad("compression", "is not 0, as in the directory");
  in.skip(4, "time");
  const uint32_t crc = in.u32("crc"), stored = in.u32("stored size"), bytes = in.u32("size");
  const bool later = (e.flags & kSizesFollow) && crc == 0;
  if (!later &&
      (crc != e.entry.crc || is_told(stored, e.entry.bytes) || is_told(bytes, e.entry.bytes)))
    in.bad("size", "or crc of {} are not those of the directory", printable(e.entry.name));
  const uint16_t name = in.u16("length of the name"), extra = in.u16("size of the extra fields");
  if (in.string(name, kLongestName, "name of the entry") != e.entry.name)
    in.bad("name of the entry", "is not that of the directory, {}", printable(e.entry.name));
  in.skip(extra, "extra fields");
  return in.offset();
}

// Whether `bytes` may lie between a content and the next head: the sizes once more, if so flagged.
bool is_descriptor(const CentralEntry& e, uint64_t bytes) {
  if (!(e.flags & kSizesFollow)) return bytes == 0;
  return bytes == 12 || bytes == 16 || bytes == 20 || bytes == 24;
}

// Places every entry; `end` is where the directory begins. They fill [0, end) without a gap.
void place(const Archive& archive, const std::string& path, std::vector<CentralEntry>& entries,
           uint64_t end) {
  std::sort(entries.begin(), entries.end(),
            [](const CentralEntry& a, const CentralEntry& b) { return a.head < b.head; });
  uint64_t expected = 0;
  for (size_t i = 0; i < entries.size(); ++i) {
    CentralEntry& e = entries[i];
    const uint64_t limit = i + 1 < entries.size() ? entries[i + 1].head : end;
    if (limit > end || e.head > limit || (i == 0 && e.head != 0))
      fail(Kind::input, "{}: zip entry {} at offset {} (expected {}, before {})", printable(path),
           printable(e.entry.name), e.head, expected, end);
    ByteReader in = archive.at(e.head, limit);
    e.entry.offset = check_local(in, e);
    if (e.entry.bytes > in.remaining() || !is_descriptor(e, in.remaining() - e.entry.bytes))
      in.bad("zip entry", "{} has {} bytes, there is room for {}", printable(e.entry.name),
             e.entry.bytes, in.remaining());
    expected = limit;
  }
}

}  // namespace

std::vector<ZipEntry> parse_zip(const std::string& path, std::span<const std::byte> file) {
  const Archive archive(path, file);
  const Directory d = archive.directory();
  if (d.offset > d.end || d.bytes != d.end - d.offset)
    fail(Kind::input, "{}: zip directory of {} bytes at offset {} (expected to end at {})",
         printable(path), d.bytes, d.offset, d.end);
  ByteReader in = archive.at(d.offset, d.end);
  if (d.entries > kMostEntries) in.bad("number of entries", "is {}", d.entries);
  in.expect_records(d.entries, kCentralBytes, "number of entries");
  std::vector<CentralEntry> central;
  std::unordered_set<std::string> names;
  for (uint64_t i = 0; i < d.entries; ++i) {
    central.push_back(read_central(in));
    if (!names.insert(central.back().entry.name).second)
      in.bad("name of the entry", "comes twice: {}", printable(central.back().entry.name));
  }
  if (in.remaining() > 0) in.bad("zip directory", "has {} bytes too many", in.remaining());
  if (central.empty()) in.bad("zip directory", "is empty");
  place(archive, path, central, d.offset);
  std::vector<ZipEntry> entries;
  for (CentralEntry& e : central) entries.push_back(std::move(e.entry));
  return entries;
}

// ---- CRC-32

namespace {

constexpr int kSlices = 16;  // bytes per step

constexpr auto kCrcTables = [] {
  std::array<std::array<uint32_t, 256>, kSlices> tables{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = crc >> 1 ^ (crc & 1 ? 0xedb88320u : 0);
    tables[0][i] = crc;
  }
  for (uint32_t i = 0; i < 256; ++i)
    for (int s = 1; s < kSlices; ++s)
      tables[s][i] = tables[s - 1][i] >> 8 ^ tables[0][tables[s - 1][i] & 0xff];
  return tables;
}();

}  // namespace

uint32_t crc32(std::span<const std::byte> bytes, uint32_t before) {
  uint32_t crc = ~before;
  const auto* at = reinterpret_cast<const uint8_t*>(bytes.data());
  const uint8_t* const end = at + bytes.size();
  for (; end - at >= kSlices; at += kSlices) {
    uint32_t first;
    std::memcpy(&first, at, sizeof first);
    first ^= crc;
    crc = 0;
    for (int i = 0; i < 4; ++i) crc ^= kCrcTables[kSlices - 1 - i][first >> 8 * i & 0xff];
    for (int i = 4; i < kSlices; ++i) crc ^= kCrcTables[kSlices - 1 - i][at[i]];
  }
  for (; at < end; ++at) crc = crc >> 8 ^ kCrcTables[0][(crc ^ *at) & 0xff];
  return ~crc;
}

namespace {

// a * b modulo the polynomial of the sum, both reflected: bit 31 is x^0.
uint32_t multiplied(uint32_t a, uint32_t b) {
  uint32_t product = 0;
  for (uint32_t bit = 1u << 31; bit; bit >>= 1) {
    if (a & bit) product ^= b;
    b = b >> 1 ^ (b & 1 ? 0xedb88320u : 0);
  }
  return product;
}

}  // namespace

uint32_t combined_crc32(uint32_t before, uint32_t crc, uint64_t bytes) {
  uint32_t shift = 1u << 31, power = 1u << 23;  // x^0; x^8, squared for each bit of `bytes`
  for (; bytes; bytes >>= 1, power = multiplied(power, power))
    if (bytes & 1) shift = multiplied(shift, power);
  return multiplied(shift, before) ^ crc;
}

// ---- writing

namespace {

constexpr uint64_t kAlignment = 64;
constexpr uint16_t kFillId = 0x4246;  // "FB", as PyTorch names its padding

template <class T>
void put(std::string& to, T value) {
  to.append(reinterpret_cast<const char*>(&value), sizeof value);
}

uint32_t saturated(uint64_t value) {
  return static_cast<uint32_t>(std::min<uint64_t>(value, kAll32));
}

// 64-bit sizes, where the 32-bit ones do not hold them.
std::string zip64_field(std::initializer_list<uint64_t> values) {
  std::string field, out;
  for (uint64_t value : values)
    if (value >= kAll32) put(field, value);
  if (field.empty()) return out;
  put(out, kExtra64);
  put(out, static_cast<uint16_t>(field.size()));
  return out + field;
}

std::string fixed_fields(const ZipSize& e) {
  std::string out;
  put(out, uint16_t{1 << 11});     // names are UTF-8
  put(out, uint16_t{0});           // stored
  put(out, uint32_t{0x00210000});  // 1980-01-01
  put(out, e.crc);
  put(out, saturated(e.bytes));
  put(out, saturated(e.bytes));
  put(out, static_cast<uint16_t>(e.name.size()));
  return out;
}

}  // namespace

void ZipLayout::add(ZipSize entry) {
  CHECK(entry.name.size() <= kLongestName, "zip: name of {} bytes", entry.name.size());
  Place place{std::move(entry), end_, 0};
  const uint64_t fixed = end_ + kLocalBytes + place.entry.name.size() +
                         zip64_field({place.entry.bytes, place.entry.bytes}).size() + 4;
  place.content = (fixed + kAlignment - 1) / kAlignment * kAlignment;
  end_ = place.content + place.entry.bytes;
  places_.push_back(std::move(place));
}

std::string ZipLayout::head(size_t i) const {
  const Place& p = places_[i];
  std::string out;
  put(out, kLocal);
  put(out, uint16_t{45});  // version that knows zip64
  out += fixed_fields(p.entry);
  std::string extra = zip64_field({p.entry.bytes, p.entry.bytes});
  const uint64_t fill = p.content - p.head - kLocalBytes - p.entry.name.size() - extra.size() - 4;
  put(extra, kFillId);
  put(extra, static_cast<uint16_t>(fill));
  extra.append(fill, 'Z');
  put(out, static_cast<uint16_t>(extra.size()));
  return out + p.entry.name + extra;
}

std::string ZipLayout::directory() const {
  std::string out;
  for (const Place& p : places_) {
    const std::string extra = zip64_field({p.entry.bytes, p.entry.bytes, p.head});
    put(out, kCentral);
    put(out, uint16_t{45});
    put(out, uint16_t{45});
    out += fixed_fields(p.entry);
    put(out, static_cast<uint16_t>(extra.size()));
    out.append(10, '\0');  // comment, disk, attributes
    put(out, saturated(p.head));
    out += p.entry.name + extra;
  }
  const uint64_t bytes = out.size(), count = places_.size();
  if (count >= 0xffff || bytes >= kAll32 || end_ >= kAll32) {
    put(out, kEnd64);
    put(out, kEnd64Bytes - 12);
    put(out, uint32_t{45 << 16 | 45});
    put(out, uint64_t{0});
    for (uint64_t value : {count, count, bytes, end_}) put(out, value);
    put(out, kLocator64);
    put(out, uint32_t{0});
    put(out, end_ + bytes);
    put(out, uint32_t{1});
  }
  put(out, kEnd);
  put(out, uint32_t{0});
  const auto small = static_cast<uint16_t>(std::min<uint64_t>(count, 0xffff));
  put(out, small);
  put(out, small);
  put(out, saturated(bytes));
  put(out, saturated(end_));
  put(out, uint16_t{0});
  return out;
}

}  // namespace sft
