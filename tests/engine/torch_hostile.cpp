// Crafted files of torch.save: archives that lie, pickles that call, storages that are not there.
// Each must be refused, or read as a tree that does nothing, at once and in little memory.
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstddef>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <functional>

#include "engine/formats/torch_file.h"
#include "engine/formats/zip.h"
#include "tests/address_limit.h"
#include "tests/doctest.h"
#include "tests/golden.h"
#include "tests/run_program.h"
#include "tests/temporary_folder.h"

using namespace sft;
using test::TemporaryFolder;
using std::string_literals::operator""s;

namespace {

void write_raw(const std::string& path, const std::string& bytes) {
  std::ofstream(path, std::ios::binary) << bytes;
}

template <class T>
std::string number(T value) {
  return {reinterpret_cast<const char*>(&value), sizeof value};
}

struct Member {
  std::string name, content;
};

std::string archive(const std::vector<Member>& members) {
  ZipLayout zip;
  for (const Member& m : members)
    zip.add({m.name, m.content.size(),
             crc32(std::as_bytes(std::span(m.content.data(), m.content.size())))});
  std::string out;
  for (size_t i = 0; i < members.size(); ++i) {
    const std::string head = zip.head(i);
    out.append(zip.offset(i) - head.size() - out.size(), '\0');
    out += head + members[i].content;
  }
  return out + zip.directory();
}

// A file whose object is `pickle`, with one storage of four floats.
std::string saved(const std::string& pickle) {
  return archive({{"a/data.pkl", pickle}, {"a/data/0", std::string(16, '\0')}});
}

// ---- pieces of pickles

std::string unicode(const std::string& s) {
  return "X" + number(static_cast<uint32_t>(s.size())) + s;
}
std::string integer(int64_t value) { return "\x8a\x08" + number(value); }
std::string global(const std::string& module, const std::string& name) {
  return "c" + module + "\n" + name + "\n";
}
std::string tuple(const std::vector<std::string>& items) {
  std::string out = "(";
  for (const std::string& item : items) out += item;
  return out + "t";
}
std::string integers(const std::vector<int64_t>& values) {
  std::vector<std::string> items;
  for (int64_t value : values) items.push_back(integer(value));
  return tuple(items);
}
std::string pickle(const std::string& body) { return "\x80\x02" + body + "."; }
// A dict with one tensor.
std::string state(const std::string& value, const std::string& name = "w") {
  return pickle("}" + unicode(name) + value + "s");
}

struct TensorPickle {
  std::string type = global("torch", "FloatStorage"), key = unicode("0"), count = integer(4);
  std::string offset = integer(0), size = integers({2, 2}), stride = integers({2, 1});

  std::string storage() const {
    return tuple({unicode("storage"), type, key, unicode("cpu"), count}) + "Q";
  }
  std::string value() const {
    return global("torch._utils", "_rebuild_tensor_v2") +
           tuple({storage(), offset, size, stride, "\x89",
                  global("collections", "OrderedDict") + ")R"}) +
           "R";
  }
  std::string file() const { return saved(state(value())); }
};

struct Hostile {
  const char* what;
  std::string file;
  const char* message;  // part of the one expected
};

std::vector<Hostile> hostile_tensors() {
  const auto with = [](const std::function<void(TensorPickle&)>& change) {
    TensorPickle t;
    change(t);
    return t.file();
  };
  const int64_t huge = int64_t{1} << 62;
  return {
      {"a type of storage from elsewhere",
       with([](auto& t) { t.type = global("evil", "FloatStorage"); }), "storage type at offset"},
      {"an unknown type", with([](auto& t) { t.type = global("torch", "EvilStorage"); }),
       "is torch.EvilStorage"},
      {"a type that is text", with([](auto& t) { t.type = unicode("FloatStorage"); }),
       "storage type"},
      {"a storage that is not there", with([](auto& t) { t.key = unicode("7"); }),
       "7 is not in the"},
      {"a key that leads out", with([](auto& t) { t.key = unicode("../data.pkl"); }),
       "is not in the"},
      {"a storage said to be larger", with([](auto& t) { t.count = integer(5); }),
       "of 5 f32 has 16 bytes"},
      {"a size that wraps", with([huge](auto& t) { t.count = integer(huge); }), "has 16 bytes"},
      {"a negative count", with([](auto& t) { t.count = integer(-4); }), "storage size at offset"},
      {"a count that is true", with([](auto& t) { t.count = "\x88"; }), "is no integer"},
      {"an offset outside", with([](auto& t) { t.offset = integer(1); }), "reaches from 1 over 4"},
      {"a negative offset", with([](auto& t) { t.offset = integer(-1); }),
       "storage offset at offset"},
      {"an offset of 2^62", with([huge](auto& t) { t.offset = integer(huge); }), "reaches from"},
      {"a negative stride", with([](auto& t) {
         t.stride = integers({-2, 1});
       }),
       "stride at offset"},
      {"a stride of 2^62", with([huge](auto& t) {
         t.stride = integers({huge, huge});
       }),
       "reaches from 0 over"},
      {"strides that wrap", with([huge](auto& t) {
         t.size = integers({5, 5}), t.stride = integers({huge, huge});
       }),
       "reaches past 2^64"},
      {"a size of 2^62", with([huge](auto& t) {
         t.size = integers({huge, 4});
       }),
       "above 2^63"},
      {"a product that wraps to 0", with([](auto& t) {
         t.size = integers({int64_t{1} << 32, int64_t{1} << 32});
       }),
       "above 2^63"},
      {"a negative size", with([](auto& t) {
         t.size = integers({-2, 2});
       }),
       "size at offset"},
      {"four values said to be 2^40",
       with([](auto& t) { t.size = integers({int64_t{1} << 40}), t.stride = integers({0}); }),
       "repeats 4 elements"},
      {"five dimensions", with([](auto& t) {
         t.size = t.stride = integers({1, 1, 1, 1, 1});
       }),
       "5 dimensions"},
      {"more sizes than strides", with([](auto& t) { t.size = integers({4}); }), "of one length"},
      {"a size that is a list", with([](auto& t) { t.size = "]"; }), "not tuples"},
      {"a storage that is no persistent id",
       saved(state(global("torch._utils", "_rebuild_tensor_v2") +
                   tuple({integer(0), integer(0), integers({1}), integers({1})}) + "R")),
       "no persistent id"},
      {"too few arguments",
       saved(state(global("torch._utils", "_rebuild_tensor_v2") + tuple({integer(0)}) + "R")),
       "made of 1 arguments"},
      {"an unknown dtype",
       saved(state(global("torch._utils", "_rebuild_tensor_v3") +
                   tuple({TensorPickle().storage(), integer(0), integers({1}), integers({1}), "N",
                          "N", global("os", "system")}) +
                   "R")),
       "dtype at offset"},
      {"an escape in a name", saved(state(TensorPickle().value(), "a\x1b[2J")), "a\\x1b[2J"},
      {"a path as a name", saved(state(TensorPickle().value(), "../a")), "looks like a path"},
      {"no name", saved(state(TensorPickle().value(), "")), "is empty"},
      {"a name twice",
       saved(pickle("}(" + unicode("w") + TensorPickle().value() + unicode("w") +
                    TensorPickle().value() + "u")),
       "comes twice"},
  };
}

std::vector<Hostile> hostile_pickles() {
  std::string deep = ")";
  deep.append(1'000'000, '\x85');
  std::string bomb = "]q"s + '\0' + "0";  // ten times ten times ... the same list
  for (char level = 0; level < 20; ++level) {
    bomb += "](";
    for (int i = 0; i < 10; ++i) bomb += "h"s + level;
    bomb += "eq"s + static_cast<char>(level + 1) + "0";
  }
  bomb += "h\x14";
  return {
      {"an empty pickle", saved(""), "opcode at offset"},
      {"only its end", saved("."), "stack at offset"},
      {"two values at the end", saved(pickle("NN")), "leaves 1 values"},
      {"bytes after its end", saved(pickle("N") + "N"), "1 bytes after its end"},
      {"an unknown opcode", saved(pickle("\xff")), "is 0xff, which is not read"},
      {"an extension code", saved(pickle("\x82\x01")), "is 0x82"},
      {"a buffer from elsewhere", saved(pickle("\x97")), "is 0x97"},
      {"protocol 9", saved("\x80\x09N."), "protocol at offset"},
      {"a frame past the end", saved(pickle("\x95" + number(uint64_t{1} << 60))),
       "frame at offset"},
      {"a text of 2^31 bytes", saved(pickle("X" + number(uint32_t{1} << 31))), "cut off"},
      {"a text of 2^63 bytes", saved(pickle("\x8d" + number(uint64_t{1} << 63))), "bytes long"},
      {"bytes of 2^64 - 1", saved(pickle("\x8e" + number(~uint64_t{0}))), "bytes long"},
      {"a text of -1 bytes", saved(pickle("T" + number(int32_t{-1}))), "is -1"},
      {"an integer of -1 bytes", saved(pickle("\x8b" + number(int32_t{-1}))), "is -1"},
      {"a line without an end", saved(pickle("I12345678")), "cut off"},
      {"a line of a megabyte", saved(pickle("I" + std::string(1 << 20, '1'))), "longer than"},
      {"a number that is none", saved(pickle("I1x\n")), "no number: 1x"},
      {"a number above 64 bits", saved(pickle("L99999999999999999999L\n")), "no number"},
      {"a text without quotes", saved(pickle("Sabc\n")), "without quotes"},
      {"an escape that is none", saved(pickle("S'\\xzz'\n")), "not hexadecimal"},
      {"more taken than there is", saved(pickle("N00")), "is empty"},
      {"a call of nothing", saved(pickle("R")), "is empty"},
      {"a call without a tuple", saved(pickle("NNR")), "not a tuple"},
      {"values for no mark", saved(pickle("]Ne")), "has no mark"},
      {"values taken past a mark", saved(pickle("]N(R")), "is empty"},
      {"an item of a number", saved(pickle("K\1NNs")), "no container"},
      {"an element of a number", saved(pickle("K\1Na")), "no container"},
      {"a key without a value", saved(pickle("}(Nu")), "key without a value"},
      {"an object of no class", saved(pickle("(o")), "no class"},
      {"a class whose name is a number", saved(pickle("K\1K\2\x93")), "is no text"},
      {"a memo that was not made", saved(pickle("h\1")), "nothing at 1"},
      {"a memo at 2^32", saved(pickle("Nr\xff\xff\xff\xff")), "memo at offset"},
      {"a memo at 2^40", saved(pickle("Np1099511627776\n")), "memo at offset"},
      {"a tuple 1,000,000 deep", saved(pickle(deep)), "holds more than"},
      {"2,000,000 marks", saved(pickle(std::string(2'000'000, '('))), "marks"},
      {"2,000,000 values", saved(pickle(std::string(2'000'000, 'N'))), "is deeper than"},
      {"2,000,000 dicts", saved(pickle(std::string(2'000'000, '}'))), "holds more than"},
      {"a list of lists, 10^20 in all", saved(pickle(bomb)), "holds no tensors"},
      {"a dict in itself", saved(pickle("}q\1" + unicode("w") + "h\1s")), "holds no tensors"},
      {"a list as the root", saved(pickle("]")), "holds no tensors"},
      {"a persistent id of nothing", saved(state("NQ")), "holds no tensors"},
      {"a persistent id of a line", saved(state("Pstorage\n")), "holds no tensors"},
  };
}

// Records of an archive of data.pkl and data/0.
struct Archive {
  std::string bytes = TensorPickle().file();

  size_t nth(const std::string& signature, int n) const {
    size_t at = bytes.find(signature);
    for (; n > 0; --n) at = bytes.find(signature, at + 1);
    REQUIRE(at != std::string::npos);
    return at;
  }
  template <class T>
  Archive& set(const std::string& signature, int n, size_t field, T value) {
    bytes.replace(nth(signature, n) + field, sizeof value, number(value));
    return *this;
  }
};

const std::string kLocal = "PK\3\4", kCentral = "PK\1\2", kEnd = "PK\5\6";

std::vector<Hostile> hostile_archives() {
  const auto changed = [](const std::string& signature, int n, size_t field, auto value) {
    return Archive().set(signature, n, field, value).bytes;
  };
  const std::string good = Archive().bytes, pickled = state(TensorPickle().value());
  const std::string floats(16, '\0');
  std::string two = Archive().bytes;
  two.replace(two.rfind("a/data/0"), 8, "a/data.p");
  // zip64 records before an end record that says nothing
  const size_t directory = Archive().nth(kCentral, 0), end = good.size() - 22;
  const auto zip64 = [&](uint64_t entries, uint64_t bytes, uint64_t offset, uint64_t record) {
    std::string out = good.substr(0, end);
    out += "PK\6\6" + number(uint64_t{44}) + std::string(4, '\0') + std::string(8, '\0');
    out += number(entries) + number(entries) + number(bytes) + number(offset);
    out += "PK\6\7" + std::string(4, '\0') + number(record) + number(uint32_t{1});
    return out + kEnd + std::string(4, '\0') + std::string(4, '\xff') + std::string(8, '\xff') +
           std::string(2, '\0');
  };
  return {
      {"no data.pkl", archive({{"a/x", "1"}}), "without data.pkl"},
      {"data.pkl in no folder", archive({{"data.pkl", pickled}}), "without data.pkl"},
      {"two data.pkl", archive({{"a/data.pkl", pickled}, {"b/data.pkl", pickled}}), "two entries"},
      {"another byte order",
       archive({{"a/data.pkl", pickled}, {"a/data/0", floats}, {"a/byteorder", "big"}}),
       "byteorder at offset"},
      {"a program", archive({{"a/data.pkl", pickled}, {"a/constants.pkl", "x"}}), "TorchScript"},
      {"a zip archive in it", archive({{"a/archive.zip", good}}), "without data.pkl"},
      {"a changed pickle", changed(kCentral, 0, 16, uint32_t{1}), "crc of a/data.pkl"},
      {"a sum that is not that of the pickle",
       Archive().set(kCentral, 0, 16, uint32_t{1}).set(kLocal, 0, 14, uint32_t{1}).bytes,
       "has CRC-32"},
      {"a sum that is not that of a storage",
       Archive().set(kCentral, 1, 16, uint32_t{1}).set(kLocal, 1, 14, uint32_t{1}).bytes,
       "storage at offset"},
      {"compressed", changed(kCentral, 1, 10, uint16_t{8}), "is method 8"},
      {"compressed in its head", changed(kLocal, 1, 8, uint16_t{8}), "compression at offset"},
      {"encrypted", changed(kCentral, 1, 8, uint16_t{0x801}), "encrypted"},
      {"flags told twice", changed(kLocal, 1, 6, uint16_t{0}), "flags at offset"},
      {"sizes that differ", changed(kCentral, 1, 20, uint32_t{15}), "for 16 bytes"},
      {"a size told twice", changed(kLocal, 1, 22, uint32_t{15}), "not those of the directory"},
      {"a size past the end",
       Archive()
           .set(kCentral, 1, 20, uint32_t{1 << 30})
           .set(kCentral, 1, 24, uint32_t{1 << 30})
           .set(kLocal, 1, 18, uint32_t{1 << 30})
           .set(kLocal, 1, 22, uint32_t{1 << 30})
           .bytes,
       "there is room for 16"},
      {"a size that leaves a hole",
       Archive()
           .set(kCentral, 1, 20, uint32_t{8})
           .set(kCentral, 1, 24, uint32_t{8})
           .set(kLocal, 1, 18, uint32_t{8})
           .set(kLocal, 1, 22, uint32_t{8})
           .bytes,
       "there is room for 16"},
      {"an entry over another", changed(kCentral, 1, 42, uint32_t{0}), "head of a zip entry"},
      {"an entry past the end", changed(kCentral, 1, 42, uint32_t{1 << 30}), "zip entry"},
      {"an entry at no head", changed(kCentral, 1, 42, uint32_t{3}), "zip entry"},
      {"the first entry not at 0", "PK\3\4" + good, "zip"},
      {"another name in the head", two, "is not that of the directory"},
      {"a name twice", archive({{"a/data.pkl", pickled}, {"a/data.pkl", pickled}}), "comes twice"},
      {"a name out of its folder", archive({{"a/../../data.pkl", pickled}}), "looks like a path"},
      {"an absolute name", archive({{"/etc/data.pkl", pickled}}), "looks like a path"},
      {"a backslash", archive({{"a\\data.pkl", pickled}}), "backslash"},
      {"an escape in a name", archive({{"a\x1b/data.pkl", pickled}}), "a\\x1b"},
      {"a name past the directory", changed(kCentral, 1, 28, uint16_t{0xffff}),
       "name of the entry"},
      {"extra fields past the directory", changed(kCentral, 1, 30, uint16_t{0xffff}), "extra"},
      {"a comment in the directory", changed(kCentral, 1, 32, uint16_t{1}), "comment"},
      {"a head past its entry", changed(kLocal, 1, 28, uint16_t{0xffff}), "extra fields"},
      {"another disk", changed(kCentral, 1, 34, uint16_t{1}), "disk number"},
      {"entries that are not there",
       Archive().set(kEnd, 0, 8, uint16_t{9}).set(kEnd, 0, 10, uint16_t{9}).bytes,
       "number of entries"},
      {"fewer entries", Archive().set(kEnd, 0, 8, uint16_t{1}).set(kEnd, 0, 10, uint16_t{1}).bytes,
       "bytes too many"},
      {"no entries", Archive().set(kEnd, 0, 8, uint16_t{0}).set(kEnd, 0, 10, uint16_t{0}).bytes,
       "bytes too many"},
      {"entries told twice", changed(kEnd, 0, 8, uint16_t{1}), "is 1 and 2"},
      {"a directory elsewhere", changed(kEnd, 0, 16, uint32_t{7}), "zip directory of"},
      {"a directory past the end", changed(kEnd, 0, 16, uint32_t{0xfffffff0}), "zip directory of"},
      {"a comment at the end", good + "x", "is not the end of the file"},
      {"a comment that is told", changed(kEnd, 0, 20, uint16_t{1}) + "x", "is not the end"},
      {"a comment that is not there", changed(kEnd, 0, 20, uint16_t{1}), "comment"},
      {"zip64 elsewhere", zip64(2, end - directory, directory, 1), "offset of the zip64 record"},
      {"zip64 with 2^64 - 1 entries", zip64(~uint64_t{0}, end - directory, directory, end),
       "number of entries"},
      {"zip64 with 500,000 entries", zip64(500'000, end - directory, directory, end),
       "number of entries"},
      {"zip64 of another size", zip64(2, ~uint64_t{0}, directory, end), "zip directory of"},
      {"zip64 beyond the file", zip64(2, end - directory, uint64_t{1} << 62, end),
       "zip directory of"},
      {"a safetensors file as well", "\x02\0\0\0\0\0\0\0{}"s + good, "no file of torch.save"},
      {"a tar archive, as before 0.4", std::string(512, 't'), "no file of torch.save"},
  };
}

void expect_refused(const std::vector<Hostile>& files) {
  const TemporaryFolder folder;
  for (const Hostile& hostile : files) {
    INFO(std::string(hostile.what));
    write_raw(folder / "file", hostile.file);
    const std::clock_t start = std::clock();
    const Error e = [&] {
      const test::AddressLimit limit(64 << 20);
      return test::error_of([&] { read_torch_table(folder / "file"); });
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

// ---- pickles that call

// Ends the process at any system call that makes a process, a socket or a file.
bool forbid_effects() {
  constexpr long kCalls[] = {SYS_execve, SYS_execveat, SYS_fork,    SYS_vfork, SYS_clone,
                             SYS_clone3, SYS_socket,   SYS_connect, SYS_mkdir, SYS_unlink,
                             SYS_rename, SYS_creat,    SYS_write,   SYS_kill};
  std::vector<sock_filter> filter = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr))};
  for (long call : kCalls) {
    filter.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, static_cast<uint32_t>(call), 0, 1));
    filter.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS));
  }
  filter.push_back(BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat, 0, 3));
  filter.push_back(BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, args[2])));
  filter.push_back(BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, O_CREAT | O_WRONLY | O_RDWR, 0, 1));
  filter.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS));
  filter.push_back(BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
  const sock_fprog program{static_cast<unsigned short>(filter.size()), filter.data()};
  return ::prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         ::prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

// How a process ends that may have no effects and does `work`: 0, the exit code of an exception,
// or 128 + signal.
int alone(const std::function<void()>& work) {
  const pid_t child = ::fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    if (!forbid_effects()) ::_exit(99);
    try {
      work();
    } catch (const Error& e) {
      ::_exit(static_cast<int>(e.kind));
    }
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
}

}  // namespace

TEST_CASE("torch: tensors that are not what they say are refused, by name and offset") {
  expect_refused(hostile_tensors());
}

TEST_CASE("pickle: crafted pickles are refused, by offset, at once and in little memory") {
  expect_refused(hostile_pickles());
}

TEST_CASE("zip: crafted archives are refused, by field and offset") {
  expect_refused(hostile_archives());
}

TEST_CASE("pickle: what a pickle calls is not called") {
  const TemporaryFolder folder;
  const std::string mark = folder / "mark", command = "touch " + mark;
  const std::string argument = tuple({unicode(command)});
  const std::string calls[] = {
      global("os", "system") + argument + "R",
      global("posix", "system") + argument + "R",
      unicode("posix") + unicode("system") + "\x93" + argument + "R",
      global("torch.serialization", "os.system") + argument + "R",
      global("builtins", "eval") + tuple({unicode("__import__('os').system('" + command + "')")}) +
          "R",
      global("builtins", "getattr") + tuple({global("os", "system"), unicode("__call__")}) + "R" +
          argument + "R",
      global("subprocess", "Popen") +
          tuple({unicode(command), integer(-1), "N", "N", "N", "N", "N", "\x89", "\x88"}) + "R",
      global("subprocess", "Popen") + argument + "\x81",
      global("subprocess", "Popen") + argument + "}\x92",
      "(" + unicode(command) + "ios\nsystem\n",
      "(" + global("os", "system") + unicode(command) + "o",
      global("socket", "create_connection") + tuple({tuple({unicode("127.0.0.1"), integer(9)})}) +
          "R",
      global("webbrowser", "open") + tuple({unicode("http://127.0.0.1/")}) + "R",
      global("torch.hub", "load") + tuple({unicode("x"), unicode("y")}) + "R",
      global("torch", "load") + tuple({unicode(mark)}) + "R",
      global("numpy.testing._private.utils", "runstring") + tuple({unicode(command), "}"}) + "R",
      global("io", "open") + tuple({unicode(mark), unicode("w")}) + "R",
      global("argparse", "Namespace") + ")\x81}" + unicode("__class__") + global("os", "system") +
          "sb",
      global("torch._utils", "_rebuild_parameter") +
          tuple({global("os", "system") + argument + "R", "\x88", "N"}) + "R",
      tuple({unicode("module"), global("os", "system"), unicode("x.py"), unicode("import os")}) +
          "Q",
  };
  if (alone([] { ::close(::open("/dev/null", O_RDONLY)); }) == 99)
    return test::skip("no seccomp here");
  EXPECT(alone([&] { ::close(::open(mark.c_str(), O_CREAT | O_WRONLY, 0600)); }) == 128 + SIGSYS);
  for (const std::string& call : calls) {
    write_raw(folder / "file", saved(pickle("}(" + unicode("model") + call + unicode("w") +
                                            TensorPickle().value() + "u")));
    EXPECT(alone([&] {
             const TorchFile file(folder / "file");
             const PickleValue value = *file.root().find("model");
             if (TorchFile::is_tensor(value)) ::_exit(98);
             if (!value.is(PickleType::object) && !value.is(PickleType::persistent)) ::_exit(97);
             file.tensor(*file.root().find("w"), "w");
           }) == 0);
    // alone it holds nothing to load
    write_raw(folder / "file", saved(state(call)));
    EXPECT(alone([&] { read_torch_table(folder / "file"); }) == 3);
  }
  EXPECT(!std::filesystem::exists(mark));
}

TEST_CASE("torch: no truncated file is accepted, no changed byte does harm") {
  const auto accepted = [](std::string_view bytes) {
    try {
      const TorchFile file("x", std::as_bytes(std::span(bytes.data(), bytes.size())));
      const auto state = file.root().find("model");
      std::vector<TensorInfo> tensors;
      for (size_t i = 0; state && i + 1 < state->size(); i += 2)
        if (TorchFile::is_tensor((*state)[i + 1]))
          tensors.push_back(file.tensor((*state)[i + 1], std::string((*state)[i].text())));
      for (const TensorInfo& tensor : file.table(std::move(tensors)).tensors)
        EXPECT(tensor.offset <= bytes.size());
      return true;
    } catch (const Error& e) {
      EXPECT(e.kind == Kind::input);
      EXPECT(printable(e.message, SIZE_MAX) == e.message);
      return false;
    }
  };
  for (const char* name : {"torch-1.zip", "torch-2.zip", "torch-2.legacy"}) {
    INFO(std::string(name));
    std::string bytes = read_text(test::golden(std::string("torch/") + name));
    REQUIRE(accepted(bytes));
    for (size_t length = 0; length < bytes.size(); ++length)
      EXPECT(!accepted(std::string_view(bytes).substr(0, length)));
    EXPECT(!accepted(bytes + '\0'));
    int changed = 0, detected = 0;
    for (char& byte : bytes) {
      const char before = byte;
      for (const char value : {char(0), char(0xff), char(before + 1), char(before - 1)}) {
        byte = value;
        changed += value != before;
        detected += value != before && !accepted(bytes);
      }
      byte = before;
    }
    // PyTorch's padding, times and versions of zip say nothing; legacy files have no sums
    EXPECT(detected * 4 > changed);
  }
}
