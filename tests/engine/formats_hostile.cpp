// Crafted files, one for each way in which model files have been used against their readers
// (CVE numbers are those of ggml, llama.cpp and Ollama), and damaged ones. Each must be refused
// with one clear line, at once, and without allocating what it asks for.
#include <ctime>
#include <fstream>
#include <functional>

#include "engine/formats/byte_reader.h"
#include "engine/formats/gguf.h"
#include "engine/formats/safetensors.h"
#include "tests/address_limit.h"
#include "tests/doctest.h"
#include "tests/golden.h"
#include "tests/run_program.h"
#include "tests/temporary_folder.h"

using namespace sft;
using test::TemporaryFolder;

namespace {

constexpr uint64_t kHuge = ~uint64_t{0};

// A file under construction.
struct Bytes {
  std::string text;

  template <class T>
  Bytes& number(T value) {
    text.append(reinterpret_cast<const char*>(&value), sizeof value);
    return *this;
  }
  Bytes& u32(uint32_t value) { return number(value); }
  Bytes& u64(uint64_t value) { return number(value); }
  Bytes& raw(std::string_view bytes) {
    text += bytes;
    return *this;
  }
  Bytes& string(std::string_view value) { return u64(value.size()).raw(value); }
  Bytes& zeros(size_t count) {
    text.append(count, '\0');
    return *this;
  }
  Bytes& pad(size_t alignment = 32) {
    return zeros((alignment - text.size() % alignment) % alignment);
  }

  // GGUF
  Bytes& tensor(std::string_view name, std::vector<uint64_t> dims, uint32_t type, uint64_t offset) {
    string(name).u32(static_cast<uint32_t>(dims.size()));
    for (uint64_t dim : dims) u64(dim);
    return u32(type).u64(offset);
  }
  Bytes& pair(std::string_view key, uint32_t type) { return string(key).u32(type); }
};

enum GgufType : uint32_t { kU8 = 0, kU32 = 4, kBool = 7, kString = 8, kArray = 9, kU64 = 10 };
enum GgmlType : uint32_t { kF32 = 0, kQ4_2 = 4, kQ8_0 = 8, kI8 = 24 };

Bytes gguf(uint64_t tensors, uint64_t pairs, uint32_t version = 3) {
  return Bytes().raw("GGUF").u32(version).u64(tensors).u64(pairs);
}

Bytes safetensors(std::string_view head, size_t data = 0) {
  return Bytes().u64(head.size()).raw(head).zeros(data);
}

struct Hostile {
  const char* what;  // and where it was found
  Bytes file;
  const char* message;  // part of the one expected
};

std::vector<Hostile> hostile_gguf() {
  const uint64_t half = uint64_t{1} << 63, block = uint64_t{1} << 62;
  return {
      {"empty (CVE-2024-41130)", Bytes().raw("GGUF"), "version"},
      {"more dimensions than fit (CVE-2024-21802)",
       gguf(1, 0).string("x").u32(0xffffffff).zeros(64), "4294967295 dimensions"},
      {"no dimensions", gguf(1, 0).string("x").u32(0).zeros(64), "0 dimensions"},
      {"five dimensions", gguf(1, 0).tensor("x", {1, 1, 1, 1, 1}, kF32, 0).pad().zeros(32),
       "5 dimensions"},
      {"array whose size wraps (CVE-2024-21825)",
       gguf(0, 1).pair("k", kArray).u32(kU64).u64((uint64_t{1} << 61) + 1).zeros(64), "elements"},
      {"array of strings without end (CVE-2025-49847, CVE-2025-52566)",
       gguf(0, 1).pair("k", kArray).u32(kString).u64(0x7fffffff).zeros(64), "elements"},
      {"array within the limit, beyond the file (llama.cpp PR 19856)",
       gguf(0, 1).pair("k", kArray).u32(kString).u64(1 << 24).zeros(64), "64 bytes that remain"},
      {"number of tensors overflows (CVE-2024-21836)", gguf(kHuge, 0).zeros(64),
       "number of tensors"},
      {"many tensors in a small file (llama.cpp 15711)", gguf(1'000'000, 0).zeros(64),
       "number of tensors"},
      {"number of keys overflows (CVE-2024-23605)", gguf(0, kHuge).zeros(64), "number of keys"},
      {"length of a string wraps (CVE-2024-23496)", gguf(0, 1).u64(kHuge).zeros(64),
       "18446744073709551615 bytes long"},
      {"a failure half way (CVE-2024-32878)",
       gguf(0, 2)
           .pair("k", kArray)
           .u32(kString)
           .u64(2)
           .string("one")
           .string("two")
           .pair("l", kString)
           .u64(100)
           .zeros(20),
       "cut off"},
      {"sum of sizes wraps (CVE-2025-53630)",
       gguf(2, 0).tensor("a", {block, 3}, kI8, 0).tensor("b", {block, 3}, kI8, 3 * block).pad(),
       "2^63"},
      {"a size near 2^63 and a padding (CVE-2026-27940)",
       gguf(3, 0)
           .tensor("a", {half - 32}, kI8, 0)
           .tensor("b", {half - 32}, kI8, half - 32)
           .tensor("c", {64}, kI8, kHuge - 63)
           .pad(),
       "past the end"},
      {"product of dimensions wraps to 0 (CVE-2026-33298)",
       gguf(1, 0).tensor("a", {uint64_t{1} << 32, uint64_t{1} << 32}, kF32, 0).pad(), "2^63"},
      {"bytes wrap (CVE-2026-33298)", gguf(1, 0).tensor("a", {block}, kF32, 0).pad(), "2^64"},
      {"a dimension of 2^63", gguf(1, 0).tensor("a", {half}, kF32, 0).pad(), "2^63"},
      {"a negative type (llama.cpp PR 19856)", gguf(0, 1).pair("k", 0xffffffff).zeros(64),
       "type 4294967295"},
      {"type of an array out of range", gguf(0, 1).pair("k", kArray).u32(255).u64(1).zeros(64),
       "type 255"},
      {"array in an array (llama.cpp 25378)",
       gguf(0, 1).pair("k", kArray).u32(kArray).u64(1).u32(kArray).u64(1).zeros(64),
       "array of type 9"},
      {"alignment 0", gguf(0, 1).pair("general.alignment", kU32).u32(0).pad(), "alignment is 0"},
      {"alignment 3", gguf(0, 1).pair("general.alignment", kU32).u32(3).pad(), "alignment is 3"},
      {"alignment 2^30 (ggml PR 1516)",
       gguf(0, 1).pair("general.alignment", kU32).u32(1 << 30).pad(), "alignment is 1073741824"},
      {"alignment of another type (V-01)", gguf(0, 1).pair("general.alignment", kU64).u64(32).pad(),
       "expected u32"},
      {"a type without blocks (V-05)", gguf(1, 0).tensor("a", {32}, kQ4_2, 0).pad().zeros(64),
       "has type 4"},
      {"a type out of range", gguf(1, 0).tensor("a", {32}, 255, 0).pad().zeros(64), "has type 255"},
      {"half a block", gguf(1, 0).tensor("a", {33}, kQ8_0, 0).pad().zeros(64), "whole blocks"},
      {"160 bytes that ask for a GiB (ggml PR 1516)",
       gguf(0, 1).pair("k", kString).u64(1 << 30).zeros(120), "at most 16777216"},
      {"data outside the file (CVE-2026-7482)",
       gguf(1, 0).tensor("a", {1 << 20}, kF32, 0).pad().zeros(64), "past the end"},
      {"an offset outside (gguf-tools 25)",
       gguf(1, 0).tensor("a", {4}, kF32, 1 << 20).pad().zeros(32), "is at 1048576"},
      {"a key twice", gguf(0, 2).pair("k", kU8).raw("1").pair("k", kU8).raw("2").pad(), "twice"},
      {"a tensor twice",
       gguf(2, 0).tensor("a", {8}, kF32, 0).tensor("a", {8}, kF32, 32).pad().zeros(64), "twice"},
      {"an overlap", gguf(2, 0).tensor("a", {8}, kF32, 0).tensor("b", {8}, kF32, 0).pad().zeros(64),
       "expected 32"},
      {"a hole", gguf(2, 0).tensor("a", {8}, kF32, 0).tensor("b", {8}, kF32, 64).pad().zeros(96),
       "expected 32"},
      {"another order",
       gguf(2, 0).tensor("a", {8}, kF32, 32).tensor("b", {8}, kF32, 0).pad().zeros(64),
       "expected 0"},
      {"bytes after the data", gguf(1, 0).tensor("a", {8}, kF32, 0).pad().zeros(33),
       "1 bytes before"},
      {"padding that says something", gguf(1, 0).tensor("a", {8}, kF32, 0).raw("x").pad().zeros(32),
       "not zero"},
      {"an escape in a name", gguf(1, 0).tensor("a\x1b[2J", {8}, kF32, 0).pad().zeros(32),
       "a\\x1b[2J"},
      {"a newline in a name", gguf(1, 0).tensor("a\nb", {8}, kF32, 0).pad().zeros(32), "a\\x0ab"},
      {"a NUL in a name",
       gguf(1, 0).tensor(std::string_view("a\0b", 3), {8}, kF32, 0).pad().zeros(32), "a\\x00b"},
      {"a path as a name", gguf(1, 0).tensor("a/../../b", {8}, kF32, 0).pad().zeros(32), "a path"},
      {"a name of 64 bytes", gguf(1, 0).tensor(std::string(64, 'x'), {8}, kF32, 0).pad().zeros(32),
       "at most 63"},
      {"no name", gguf(1, 0).tensor("", {8}, kF32, 0).pad().zeros(32), "is empty"},
      {"no key", gguf(0, 1).pair("", kU8).raw("x").pad(), "is empty"},
      {"a key that is not ASCII", gguf(0, 1).pair("\xc3\xa9", kU8).raw("x").pad(), "not ASCII"},
      {"a bool of 2", gguf(0, 1).pair("k", kBool).raw("\x02").pad(), "expected 0 or 1"},
      {"version 1", gguf(0, 0, 1).pad(), "version"},
      {"version 4", gguf(0, 0, 4).pad(), "version"},
      {"another byte order", gguf(0, 0, 0x03000000).pad(), "big-endian"},
  };
}

std::string entry(const char* name, const char* shape, const char* offsets,
                  const char* dtype = "F32") {
  return fmt::format("\"{}\":{{\"dtype\":\"{}\",\"shape\":{},\"data_offsets\":{}}}", name, dtype,
                     shape, offsets);
}

Hostile head(const char* what, const std::string& entries, size_t data, const char* message) {
  return {what, safetensors("{" + entries + "}", data), message};
}

std::vector<Hostile> hostile_safetensors() {
  std::string deep = "{\"a\":";
  for (int i = 0; i < 100'000; ++i) deep += i % 2 ? "[" : "{\"a\":";
  std::string zip = "PK\x05\x06";
  zip.append(18, '\0');
  return {
      {"a length of 2^64 - 1", Bytes().u64(kHuge).raw("{}"), "at most 32000000"},
      {"a length of 100 MB and 1", Bytes().u64(100'000'001).raw("{}"), "at most 32000000"},
      {"a length past the end", Bytes().u64(1000).raw("{}"), "cut off"},
      {"no head", safetensors(""), "does not start with {"},
      {"a list as the head", safetensors("[]"), "does not start with {"},
      {"levels without end", safetensors(deep), "unexpected"},
      {"a head cut off", safetensors("{\"a\":{"), "no valid JSON at byte"},
      {"two objects", safetensors("{}{}"), "no valid JSON at byte 3"},
      {"broken UTF-8", safetensors("{\"\xff\":{}}"), "no valid JSON at byte"},
      head("no fields", "\"a\":{}", 0, "lack of dtype"),
      head("a tensor that is a list", "\"a\":[1]", 0, "unexpected ["),
      head("a tensor that is a number", "\"a\":1", 0, "unexpected 1"),
      head("an unknown field", "\"a\":{\"x\":1}", 0, "unexpected 1"),
      head("an unknown type", entry("a", "[4]", "[0,4]", "F8_E4M3"), 4, "dtype F8_E4M3"),
      head("a name twice", entry("a", "[1]", "[0,4]") + "," + entry("a", "[1]", "[4,8]"), 8,
           "second entry"),
      head("a field twice", "\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}", 0, "unexpected F32"),
      head("an overlap", entry("a", "[2]", "[0,8]") + "," + entry("b", "[2]", "[4,12]"), 12,
           "expected 8"),
      head("a hole", entry("a", "[1]", "[0,4]") + "," + entry("b", "[1]", "[8,12]"), 12,
           "expected 4"),
      head("a hole at the start", entry("a", "[1]", "[4,8]"), 8, "expected 0"),
      head("bytes after the data", entry("a", "[1]", "[0,4]"), 5, "1 bytes follow"),
      head("data outside the file (CVE-2026-7482)", entry("a", "[100]", "[0,400]"), 4,
           "past the end"),
      head("end before begin", entry("a", "[1]", "[4,0]"), 4, "data_offsets [4, 0]"),
      head("another size", entry("a", "[2]", "[0,4]"), 4, "expected 8 bytes"),
      head("three offsets", entry("a", "[1]", "[0,4,4]"), 4, "two data_offsets"),
      head("five dimensions", entry("a", "[1,1,1,1,1]", "[0,4]"), 4, "more than 4 dimensions"),
      head("a negative dimension", entry("a", "[-1]", "[0,4]"), 4, "unexpected -1"),
      head("a fraction", entry("a", "[1.0]", "[0,4]"), 4, "unexpected 1.0"),
      head("a dimension of 2^64", entry("a", "[18446744073709551616]", "[0,4]"), 4, "unexpected"),
      head("a dimension of 2^63", entry("a", "[9223372036854775808]", "[0,4]"), 4, "unexpected"),
      head("a product that wraps", entry("a", "[4611686018427387904,4]", "[0,0]"), 0, "2^63"),
      head("an escape in a name", entry("a\\u001b[2J", "[1]", "[0,4]"), 4, "a\\x1b[2J"),
      head("a NUL in a name", entry("a\\u0000", "[1]", "[0,4]"), 4, "a\\x00"),
      head("a path as a name", entry("../a", "[1]", "[0,4]"), 4, "looks like a path"),
      head("no name", entry("", "[1]", "[0,4]"), 4, "is empty"),
      head("metadata that are no strings", "\"__metadata__\":{\"a\":1}", 0, "unexpected 1"),
      head("metadata in metadata", "\"__metadata__\":{\"a\":{}}", 0, "unexpected {"),
      head("metadata twice", "\"__metadata__\":{\"a\":\"b\",\"a\":\"c\"}", 0, "second a"),
      {"a zip archive as well",
       safetensors("{" + entry("a", "[26]", "[0,26]", "U8") + "}").raw("PK\x03\x04").raw(zip),
       "zip archive"},
  };
}

void write_raw(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

void expect_refused(const std::vector<Hostile>& files) {
  const TemporaryFolder folder;
  for (const Hostile& hostile : files) {
    INFO(std::string(hostile.what));
    write_raw(folder / "file", hostile.file.text);
    const std::clock_t start = std::clock();
    const Error e = [&] {
      const test::AddressLimit limit(4 << 20);
      return test::error_of([&] {
        if (hostile.file.text.starts_with("GGUF"))
          open_gguf(folder / "file");
        else
          open_safetensors(folder / "file");
      });
    }();
    INFO(e.message);
    EXPECT(e.kind == Kind::input);
    EXPECT(e.message.starts_with(folder / "file: "));
    EXPECT(e.message.find(hostile.message) != std::string::npos);
    EXPECT(printable(e.message, SIZE_MAX) == e.message);
    EXPECT(std::clock() - start < CLOCKS_PER_SEC / 10);
    test::expect_refused_file(folder / "file");
  }
}

using Parse = std::function<TensorTable(std::span<const std::byte>, uint64_t)>;
struct Format {
  const char* name;
  std::string golden;
  Parse parse;
};

const Format kFormats[] = {
    {"gguf", test::golden("containers.gguf"),
     [](std::span<const std::byte> start, uint64_t size) { return parse_gguf("x", start, size); }},
    {"safetensors", test::golden("containers.safetensors"),
     [](std::span<const std::byte> start, uint64_t size) {
       return parse_safetensors("x", start, size);
     }},
};

// Whether it is accepted; anything but a table or an input error fails the test.
bool accepted(const Format& format, std::string_view bytes) {
  const auto view = std::as_bytes(std::span(bytes.data(), bytes.size()));
  try {
    for (const TensorInfo& tensor : format.parse(view, view.size()).tensors)
      EXPECT(tensor.offset + tensor.bytes <= bytes.size());
    return true;
  } catch (const Error& e) {
    EXPECT(e.kind == Kind::input);
    return false;
  }
}

}  // namespace

TEST_CASE("gguf: crafted files are refused, by name and offset, without allocating") {
  expect_refused(hostile_gguf());
}

TEST_CASE("safetensors: crafted files are refused, by name, without allocating") {
  expect_refused(hostile_safetensors());
}

TEST_CASE("gguf: a template in the metadata is text (CVE-2024-34359)") {
  const std::string code = "{{ ''.__class__.__mro__[1].__subclasses__() }}\x1b";
  const Bytes file = gguf(0, 1).pair("tokenizer.chat_template", kString).string(code).pad();
  const auto bytes = std::as_bytes(std::span(file.text.data(), file.text.size()));
  EXPECT(parse_gguf("x", bytes, bytes.size()).metadata.string("tokenizer.chat_template") == code);
}

TEST_CASE("formats: no truncated file is accepted, no changed byte of a head does harm") {
  for (const Format& format : kFormats) {
    INFO(format.name);
    std::string bytes = read_text(format.golden);
    REQUIRE(accepted(format, bytes));
    for (size_t length = 0; length < bytes.size(); ++length)
      EXPECT(!accepted(format, std::string_view(bytes).substr(0, length)));
    EXPECT(!accepted(format, bytes + '\0'));
    int changed = 0, detected = 0;
    for (char& byte : bytes) {
      const char before = byte;
      for (const char value : {char(0), char(0xff), char(before + 1), char(before - 1)}) {
        byte = value;
        changed += value != before;
        detected += value != before && !accepted(format, bytes);
      }
      byte = before;
    }
    EXPECT(detected * 3 > changed);  // data and free text say nothing about themselves
  }
}

TEST_CASE("formats: a head is read in as many steps as it needs") {
  const TemporaryFolder folder;
  for (const Format& format : kFormats) {
    const std::string bytes = read_text(format.golden);
    const auto all = std::as_bytes(std::span(bytes.data(), bytes.size()));
    size_t asked = 0;
    for (size_t known = 0; known < bytes.size(); ++known) try {
        format.parse(all.first(known), all.size());
      } catch (const NeedMoreBytes& need) {
        EXPECT((need.bytes > known && need.bytes <= bytes.size()));
        ++asked;
      }
    EXPECT(asked > 100);
  }
  Metadata metadata;
  metadata.set("units", std::vector<std::string>(50'000, "long enough to pass 256 KiB"));
  create_gguf(folder / "large", metadata, {}).finish();
  EXPECT(open_gguf(folder / "large").metadata() == metadata);
}

TEST_CASE("safetensors: shards must agree with their index") {
  const std::string golden = test::golden("models/hubert-layer/");
  const TensorFile file = open_tensor_file(golden + "model.safetensors.index.json");
  const TensorFile first = open_safetensors(golden + "model-00001-of-00002.safetensors");
  const TensorFile second = open_safetensors(golden + "model-00002-of-00002.safetensors");
  EXPECT(file.tensors().size() == first.tensors().size() + second.tensors().size());
  for (const TensorFile* shard : {&first, &second})
    for (const TensorInfo& tensor : shard->tensors()) {
      std::vector<float> alone(static_cast<size_t>(tensor.shape.count())), joined = alone;
      shard->read_f32(tensor, alone);
      file.read_f32(file.at(tensor.name), joined);
      EXPECT(alone == joined);
    }

  const TemporaryFolder folder;
  write_raw(folder / "one", safetensors("{" + entry("a", "[1]", "[0,4]") + "}", 4).text);
  const std::pair<const char*, const char*> indices[] = {
      {R"({"weight_map":{"a":"../one"}})", "looks like a path"},
      {R"({"weight_map":{"a":"sub/one"}})", "unexpected path"},
      {R"({"weight_map":{"a":"two"}})", "cannot open"},
      {R"({"weight_map":{"b":"one"}})", "against the index"},
      {R"({"weight_map":{"a":"one","b":"one"}})", "names 2 tensors, its files hold 1"},
      {R"({"weight_map":{"a":"one","a":"one"}})", "second a"},
      {R"({"weight_map":{"a":1}})", "unexpected number"},
      {R"({"weight_map":{"a":{}}})", "unexpected object"},
      {R"({"weight_map":[]})", "unexpected list"},
      {R"({"metadata":{"total_size":4}})", "names 0 files"},
      {R"({"weight_map":)", "no valid JSON"},
  };
  for (const auto& [text, message] : indices) {
    INFO(std::string(text));
    write_raw(folder / "index.json", text);
    const Error e = test::error_of([&] { open_tensor_file(folder / "index.json"); });
    EXPECT(e.kind == Kind::input);
    INFO(e.message);
    EXPECT(e.message.find(message) != std::string::npos);
  }
  write_raw(folder / "index.json",
            R"({"metadata":{"a":[1,-1,1.5,null,true]},"weight_map":{"a":"one"}})");
  EXPECT(open_sharded(folder / "index.json").tensors().size() == 1);
}

TEST_CASE("formats: content decides what a file is, and the message says what it looks like") {
  const TemporaryFolder folder;
  const std::pair<const char*, const char*> others[] = {
      {"", "is empty"},
      {"PK\x03\x04...", "7 bytes are no zip archive (is it cut off?)"},
      {"\x80\x02}q.", "is no file of torch.save"},
      {"RIFF....WAVEfmt ", "audio (RIFF)"},
      {"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"},
      {"<!DOCTYPE html>", "HTML"},
      {"These are the weights.\n", "is text"},
      {"\x01\x02\x03", "no format known"},
  };
  for (const auto& [content, message] : others) {
    INFO(message);
    write_raw(folder / "model.gguf", content);
    const Error e = test::error_of([&] { open_tensor_file(folder / "model.gguf"); });
    EXPECT(e.kind == Kind::input);
    EXPECT(e.message.find(message) != std::string::npos);
  }
  write_raw(folder / "wrong.gguf", read_text(test::golden("containers.safetensors")));
  EXPECT(open_tensor_file(folder / "wrong.gguf").find("ids") != nullptr);
}

TEST_CASE("formats: a device that fails is a resource error") {
  const std::string path = test::golden("containers.gguf");
  const io::ScopedHook hook(
      [](io::Op op, const std::string&) { return op == io::Op::read ? EIO : 0; });
  const Error e = test::error_of([&] { open_gguf(path); });
  EXPECT(e.kind == Kind::resource);
  EXPECT(e.message == path + ": cannot read (Input/output error)");
}
