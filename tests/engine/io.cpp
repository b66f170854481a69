#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>
#include <set>

#include "engine/io/directory.h"
#include "engine/io/file.h"
#include "engine/io/hash.h"
#include "engine/io/lock.h"
#include "tests/doctest.h"
#include "tests/temporary_folder.h"

using namespace sft;
namespace fs = std::filesystem;
using test::TemporaryFolder;

namespace {

std::span<const std::byte> bytes(std::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}

std::set<std::string> names_in(const std::string& folder) {
  std::set<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder))
    names.insert(entry.path().filename().string());
  return names;
}

// Runs f in a child process; its exit status.
template <class F>
int status_of_child(F&& f) {
  const pid_t child = ::fork();
  if (child == 0) {
    f();
    ::_exit(0);
  }
  int status = 0;
  ::waitpid(child, &status, 0);
  return WEXITSTATUS(status);
}

}  // namespace

TEST_CASE("io: a file is read by place and mapped") {
  const TemporaryFolder folder;
  write_text(folder / "a", "hello world");
  InputFile file(folder / "a");
  EXPECT(file.size() == 11);
  std::string word(5, ' ');
  file.read_at(6, std::as_writable_bytes(std::span(word)));
  EXPECT(word == "world");
  EXPECT(file.map().size() == 11);
  EXPECT(file.map(Advice::sequential)[4] == std::byte{'o'});
  const InputFile moved = std::move(file);
  EXPECT(moved.map()[0] == std::byte{'h'});

  const Error e =
      test::error_of([&] { moved.read_at(7, std::as_writable_bytes(std::span(word))); });
  EXPECT(e.kind == Kind::input);
  EXPECT(e.message == folder / "a" + ": ends at byte 11, 1 more were expected");
}

TEST_CASE("io: what cannot be opened is an input error that names it") {
  const TemporaryFolder folder;
  const Error missing = test::error_of([&] { InputFile(folder / "no\x1b[31m"); });
  EXPECT(missing.kind == Kind::input);
  EXPECT(missing.message == folder / "no\\x1b[31m: cannot open (No such file or directory)");
  const Error directory = test::error_of([&] { InputFile(folder.path()); });
  EXPECT(directory.kind == Kind::input);
  EXPECT(directory.message == folder.path() + ": is a folder, not a file");
  REQUIRE(::mkfifo((folder / "fifo").c_str(), 0600) == 0);
  EXPECT(test::error_of([&] { InputFile(folder / "fifo"); }).kind == Kind::input);
  write_text(folder / "empty", "");
  EXPECT(InputFile(folder / "empty").map().empty());
  EXPECT(read_text(folder / "empty") == "");
  write_text(folder / "long", "1234");
  EXPECT(test::error_of([&] { read_text(folder / "long", 3); }).kind == Kind::input);
}

TEST_CASE("io: an output appears whole, and only at commit") {
  const TemporaryFolder folder;
  {
    OutputFile file(folder / "out");
    file.write("abc");
    file.write_zeros(5000);
    file.write_at(1, bytes("X"));
    EXPECT(file.position() == 5003);
    EXPECT(!fs::exists(folder / "out"));
    OutputFile moved = std::move(file);
    moved.commit();
  }
  EXPECT(read_text(folder / "out") == "aXc" + std::string(5000, '\0'));
  EXPECT(names_in(folder.path()) == std::set<std::string>{"out"});
  { OutputFile abandoned(folder / "other"); }
  EXPECT(names_in(folder.path()) == std::set<std::string>{"out"});
}

TEST_CASE("io: an existing destination is kept unless it may be replaced") {
  const TemporaryFolder folder;
  write_text(folder / "out", "old");
  const Error e = test::error_of([&] { OutputFile(folder / "out"); });
  EXPECT(e.kind == Kind::usage);
  EXPECT(e.hint.find("--force") != std::string::npos);
  EXPECT(test::error_of([&] { OutputFile(folder.path(), Existing::replace); }).kind == Kind::usage);

  OutputFile late(folder / "late");  // someone makes the file while we write
  write_text(folder / "late", "theirs");
  EXPECT(test::error_of([&] { late.commit(); }).kind == Kind::usage);
  EXPECT(read_text(folder / "late") == "theirs");

  write_text(folder / "out", "new", Existing::replace);
  EXPECT(read_text(folder / "out") == "new");
}

TEST_CASE("io: failing any call leaves the old file, or none, and no temporary") {
  const auto write_all = [](const std::string& path, Existing existing) {
    OutputFile file(path, existing);
    file.write("new ");
    file.write_at(0, bytes("NEW"));
    file.write("text");
    file.commit();
  };
  for (const Existing existing : {Existing::refuse, Existing::replace})
    for (const int error : {ENOSPC, EIO, EROFS, ESTALE, EACCES})
      for (int failing = 0;; ++failing) {
        const TemporaryFolder folder;
        if (existing == Existing::replace) write_text(folder / "out", "old");
        int calls = 0;
        bool failed = false, after_rename = false;
        {
          const io::ScopedHook hook([&](io::Op op, const std::string& path) {
            if (calls++ != failing) return 0;
            failed = true;
            after_rename = path == folder.path() || op == io::Op::unlink;
            return error;
          });
          try {
            write_all(folder / "out", existing);
          } catch (const Error& e) {
            EXPECT(e.kind == Kind::resource);
            EXPECT(e.message.find(folder.path()) == 0);
          }
        }
        INFO("call ", failing, ", errno ", error);
        const std::string content =
            fs::exists(folder / "out") ? read_text(folder / "out") : std::string();
        if (!failed || after_rename)
          EXPECT(content == "NEW text");
        else
          EXPECT(content == (existing == Existing::replace ? "old" : ""));
        EXPECT(names_in(folder.path()).size() == (content.empty() ? 0 : 1));
        if (!failed) {
          EXPECT(failing == 9);  // every call was failed once
          break;
        }
      }
}

TEST_CASE("io: an interrupted call is repeated") {
  const TemporaryFolder folder;
  int calls = 0;
  {
    const io::ScopedHook hook([&](io::Op, const std::string&) { return ++calls % 2 ? EINTR : 0; });
    OutputFile file(folder / "out");
    file.write("text");
    file.commit();
    EXPECT(read_text(folder / "out") == "text");
  }
  EXPECT(calls >= 14);
}

TEST_CASE("io: a process that ends at any call leaves the old file or the new") {
  bool finished = false;
  for (int last = 0; !finished; ++last) {
    const TemporaryFolder folder;
    write_text(folder / "out", "old");
    const int status = status_of_child([&] {
      int calls = 0;
      const io::ScopedHook hook([&](io::Op, const std::string&) {
        if (calls++ == last) ::_exit(9);
        return 0;
      });
      write_text(folder / "out", "new", Existing::replace);
    });
    finished = status == 0;
    const std::string content = read_text(folder / "out");
    EXPECT((content == "old" || content == "new"));
    REQUIRE(last < 100);
  }
}

TEST_CASE("io: a full disk is a resource error with the bytes needed") {
  const TemporaryFolder folder;
  const int status = status_of_child([&] {
    ::signal(SIGXFSZ, SIG_IGN);
    const rlimit limit{1000, 1000};
    ::setrlimit(RLIMIT_FSIZE, &limit);
    try {
      OutputFile file(folder / "out");
      file.expect(4000);
      file.write_zeros(4000);
    } catch (const Error& e) {
      const bool right =
          e.kind == Kind::resource && e.message.find("4000 bytes needed") != std::string::npos;
      ::_exit(right ? 4 : 1);
    }
  });
  EXPECT(status == 4);
  EXPECT(names_in(folder.path()).empty());
  const Error nowhere = test::error_of([&] { write_text(folder / "no/out", ""); });
  EXPECT(nowhere.kind == Kind::resource);
  EXPECT(nowhere.message == folder / "no/out: cannot write (No such file or directory)");
}

TEST_CASE("io: folders are made, renamed, removed") {
  const TemporaryFolder folder;
  make_directory(folder / "a/b/c");
  make_directory(folder / "a/b/c");
  write_text(folder / "a/b/c/file", "x");
  write_text(folder / "keep", "x");
  fs::create_symlink(folder / "keep", folder / "a/b/link");
  rename_directory(folder / "a/b", folder / "d");
  sync_directory(folder / "d");
  EXPECT(fs::exists(folder / "d/c/file"));
  EXPECT(test::error_of([&] { rename_directory(folder / "a", folder / "d"); }).kind ==
         Kind::resource);
  EXPECT(test::error_of([&] { make_directory(folder / "keep/x"); }).kind == Kind::resource);
  EXPECT(test::error_of([&] { sync_directory(folder / "none"); }).kind == Kind::resource);
  remove_tree(folder / "d");
  remove_tree(folder / "a");
  remove_tree(folder / "never");
  EXPECT(names_in(folder.path()) == std::set<std::string>{"keep"});
  EXPECT(parent_directory("a/b/c") == "a/b");
  EXPECT(parent_directory("a/b/") == "a");
  EXPECT(parent_directory("a") == ".");
  EXPECT(parent_directory("/a") == "/");
  EXPECT(parent_directory("/") == "/");
}

namespace {

// A folder with two files, one in a folder of its own.
void write_folder(const std::string& path, Existing existing, const std::string& content) {
  OutputDirectory out(path, existing);
  write_text(out.file("a"), content);
  make_directory(out.file("more"));
  write_text(out.file("more/b"), content);
  out.commit();
}

// What both files of such a folder say; "broken" if it is not complete.
std::string content_of(const std::string& path) {
  if (!fs::exists(path)) return "";
  const std::set<std::string> files = names_in(path);
  if (files != std::set<std::string>{"a", "more"} || !fs::exists(path + "/more/b")) return "broken";
  const std::string content = read_text(path + "/a");
  return content == read_text(path + "/more/b") ? content : "broken";
}

// Makes `failing`, counted from 0, of the calls fail, or end the process there (error 0);
// without_exchange: as on a file system that cannot exchange names.
io::Hook fail_call(int failing, int error, bool without_exchange, int& calls) {
  return [=, &calls](io::Op op, const std::string&) {
    if (calls++ == failing) return error ? error : (::_exit(9), 0);
    return without_exchange && op == io::Op::exchange ? EINVAL : 0;
  };
}

}  // namespace

TEST_CASE("io: failing any call leaves the old folder or the new, complete") {
  for (const bool without_exchange : {false, true})
    for (const bool old : {false, true})
      for (const int error : {ENOSPC, EIO, EACCES})
        for (int failing = 0, calls = failing + 1; calls > failing; ++failing) {
          const TemporaryFolder folder;
          if (old) write_folder(folder / "out", Existing::refuse, "old");
          calls = 0;
          bool failed = false;
          {
            const io::ScopedHook hook(fail_call(failing, error, without_exchange, calls));
            try {
              write_folder(folder / "out", old ? Existing::replace : Existing::refuse, "new");
            } catch (const Error& e) {
              failed = true;
              EXPECT(e.kind == Kind::resource);
              EXPECT(e.message.find(folder.path()) == 0);
            }
          }
          INFO("call ", failing, ", errno ", error, ", without exchange ", without_exchange);
          EXPECT(failed == (calls > failing));
          const std::string content = content_of(folder / "out");
          if (old)
            EXPECT((content == "new" || (failed && content == "old")));
          else
            EXPECT((content == "new" || (failed && content.empty())));
          EXPECT(names_in(folder.path()).size() == (content.empty() ? 0 : 1));
          REQUIRE(failing < 100);
        }
}

TEST_CASE("io: a process that ends at any call leaves the old folder or the new, complete") {
  for (const bool without_exchange : {false, true}) {
    int status = 9, between_renames = 0;
    for (int last = 0; status == 9; ++last) {
      const TemporaryFolder folder;
      write_folder(folder / "out", Existing::refuse, "old");
      status = status_of_child([&] {
        int calls = 0;
        const io::ScopedHook hook(fail_call(last, 0, without_exchange, calls));
        write_folder(folder / "out", Existing::replace, "new");
      });
      INFO("call ", last, ", without exchange ", without_exchange);
      if (!fs::exists(folder / "out")) {
        ++between_renames;
        EXPECT(content_of(folder / "out.tmp-old") == "old");
        const OutputDirectory next(folder / "out", Existing::replace);  // puts it back
        EXPECT(content_of(folder / "out") == "old");
      } else {
        const std::string content = content_of(folder / "out");
        EXPECT((content == "old" || content == "new"));
      }
      write_folder(folder / "out", Existing::replace, "newer");  // whatever the crash left behind
      EXPECT(content_of(folder / "out") == "newer");
      EXPECT(!fs::exists(folder / "out.tmp-old"));
      REQUIRE(last < 100);
    }
    EXPECT(status == 0);
    EXPECT(between_renames == (without_exchange ? 1 : 0));
  }
}

TEST_CASE("io: a folder replaces files and links; one that was made meanwhile is kept") {
  const TemporaryFolder folder;
  write_text(folder / "out", "a file");
  write_folder(folder / "out", Existing::replace, "new");
  EXPECT(content_of(folder / "out") == "new");
  make_directory(folder / "target");
  write_text(folder / "target/file", "x");
  fs::create_symlink(folder / "target", folder / "link");
  write_folder(folder / "link", Existing::replace, "new");
  EXPECT(content_of(folder / "link") == "new");
  EXPECT(read_text(folder / "target/file") == "x");
  make_directory(folder / "empty");
  write_folder(folder / "empty", Existing::refuse, "new");
  EXPECT(content_of(folder / "empty") == "new");

  const Error taken = test::error_of([&] { OutputDirectory(folder / "out"); });
  EXPECT(taken.kind == Kind::usage);
  OutputDirectory late(folder / "late");
  make_directory(folder / "late");
  write_text(folder / "late/theirs", "x");
  EXPECT(test::error_of([&] { late.commit(); }).kind == Kind::usage);
  EXPECT(names_in(folder / "late") == std::set<std::string>{"theirs"});
}

TEST_CASE("io: a log goes on after its last complete line") {
  const TemporaryFolder folder;
  {
    LogFile log(folder / "log");
    log.append("one");
    log.append("two");
    log.sync();
  }
  const std::string torn(10'000, 'x');
  write_text(folder / "log", "one\ntwo\n" + torn, Existing::replace);
  LogFile(folder / "log").append("three");
  EXPECT(read_text(folder / "log") == "one\ntwo\nthree\n");
  write_text(folder / "torn", torn);
  LogFile(folder / "torn").append("x");
  EXPECT(read_text(folder / "torn") == "x\n");
  EXPECT(test::error_of([&] { LogFile(folder.path()); }).kind == Kind::resource);
}

TEST_CASE("io: one holder of a lock at a time") {
  const TemporaryFolder folder;
  const std::string path = folder / "lock";
  {
    const LockFile held(path);
    const Error e = test::error_of([&] { LockFile second(path); });
    EXPECT(e.kind == Kind::resource);
    EXPECT(e.message.find(fmt::format("locked by pid {} host ", getpid())) != std::string::npos);
    EXPECT(fs::exists(path));
  }
  EXPECT(!fs::exists(path));
  status_of_child([&] {
    const LockFile held(path);
    ::_exit(0);  // dies holding it
  });
  EXPECT(fs::exists(path));
  const LockFile taken_over(path);
  EXPECT(read_text(path).find(fmt::format("pid {} ", getpid())) == 0);
  write_text(folder / "far", "pid 1 host elsewhere\n");
  const Error far = test::error_of([&] { LockFile(folder / "far"); });
  EXPECT(far.kind == Kind::resource);
  EXPECT(far.message == folder / "far: locked by pid 1 host elsewhere");
  EXPECT(test::error_of([&] { LockFile(folder / "no/lock"); }).kind == Kind::resource);
}

TEST_CASE("io: hashes of known content") {
  const TemporaryFolder folder;
  write_text(folder / "abc", "abc");
  write_text(folder / "empty", "");
  EXPECT(xxh3_of_file(folder / "empty") == "99aa06d3014798d86001c324468d497f");
  Xxh3 hash;
  hash.update("a");
  hash.update("bc");
  EXPECT(hash.digest() == xxh3_of_file(folder / "abc"));
  EXPECT(hash.digest() == "06b05ab6733a618578af5f94892f3950");
  // FIPS 180-4; lengths around the end of a block
  EXPECT(sha256_of_file(folder / "abc") ==
         "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  const std::pair<size_t, const char*> sums[] = {
      {0, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"},
      {55, "9f4390f8d30c2dd92ec9f095b65e2b9ae9b0a925a5258e241c9f1e910f734318"},
      {56, "b35439a4ac6f0948b6d6f9e3c6af0f5f590ce20f1bde7090ef7970686ec6738a"},
      {64, "ffe054fe7ae0cb6dc65c3af9b61d5209f439851db43d0ba5997337df154668eb"},
      {1000, "41edece42d63e8d9bf515a9ba6932e1c20cbc9f5a5d134645adb5db1b9737ea3"}};
  for (const auto& [length, sum] : sums) {
    Sha256 pieces;
    for (size_t at = 0; at < length; at += 7)
      pieces.update(std::as_bytes(std::span("aaaaaaa", std::min<size_t>(7, length - at))));
    EXPECT(pieces.digest() == sum);
  }
}
