// The one error type, and the two ways to raise it (docs/contract.md section 5).
//
//   fail(Kind::input, "{}: tensor {} is {}, expected {}", path, name, got, wanted);
//   fail(Kind::usage, Hint{"did you mean --alpha?"}, "unknown option {}", name);
//   CHECK(a.shape == b.shape, "add: a is {}, b is {}", a.shape, b.shape);   // a caller's mistake
//
// main() of every tool turns the kind into the exit code; nothing else calls exit or abort.
#pragma once

#ifndef __CUDACC__  // fmt 9.1 does not compile under nvcc 13: messages are made in .cpp files
#include <fmt/format.h>
#endif

#include <exception>
#include <string>
#include <string_view>
#include <utility>

namespace sft {

// The values are the exit codes.
enum class Kind : int {
  internal = 1,  // a bug in this program
  usage = 2,     // command line or configuration
  input = 3,     // model, data, audio
  resource = 4,  // disk, memory, device, lock
  diverged = 5,  // training
  check = 6,     // a check that was asked for failed
  rank = 7,      // another rank failed
  stopped = 75,  // stopped by a signal, state saved
};

struct Hint {
  std::string text;
};

class Error : public std::exception {
 public:
  Error(Kind kind, std::string message, std::string hint);
  const char* what() const noexcept override { return message.c_str(); }

  Kind kind;
  std::string message;  // "WHERE: WHAT (expected ...)"
  std::string hint;     // may be empty
};

[[noreturn]] void raise(Kind kind, std::string message, std::string hint = "");

// Text from a file or the command line, safe to print: control characters, and bytes that are not
// UTF-8, become \xNN; longer than `limit` bytes: cut and marked.
std::string printable(std::string_view text, size_t limit = 200);

[[noreturn]] void check_failed(const char* condition, const char* file, int line,
                               std::string message);

}  // namespace sft

#ifndef __CUDACC__
namespace sft {

template <class... Args>
[[noreturn]] void fail(Kind kind, fmt::format_string<Args...> format, Args&&... args) {
  raise(kind, fmt::format(format, std::forward<Args>(args)...));
}

template <class... Args>
[[noreturn]] void fail(Kind kind, Hint hint, fmt::format_string<Args...> format, Args&&... args) {
  raise(kind, fmt::format(format, std::forward<Args>(args)...), std::move(hint.text));
}

}  // namespace sft

// A caller's mistake inside the program: active in every build type.
#define CHECK(condition, ...)                                             \
  do {                                                                    \
    if (!(condition)) [[unlikely]]                                        \
      ::sft::check_failed(#condition, __builtin_FILE(), __builtin_LINE(), \
                          ::fmt::format(__VA_ARGS__));                    \
  } while (false)
#endif
