// The option layer of every tool, and the one place where errors become exit codes
// (docs/contract.md 5). stdout is data; everything for people goes to stderr.
//
//   int main(int argc, char** argv) {
//     return sft::run_tool(argc, argv, "sft-score", [](sft::Cli& cli) {
//       std::string ref, hyp;
//       bool cer = false;
//       cli.about("Word error rate of HYP against REF.");
//       cli.argument("REF.trn", ref, "reference");
//       cli.argument("HYP.trn", hyp, "what was recognised");
//       cli.flag("--cer", cer, "count characters");
//       cli.parse();  // errors: Kind::usage; --help and --version end the program here
//       ...
//     });
//   }
//
// Every tool also has --help, --version, --json, --threads, --seed, -q and -v.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "engine/check.h"

namespace sft {

// Text of an option's value -> value; Kind::usage, beginning with `name`, if it is not one.
void parse_value(std::string_view name, const std::string& text, std::string& to);
void parse_value(std::string_view name, const std::string& text, int& to);
void parse_value(std::string_view name, const std::string& text, int64_t& to);
void parse_value(std::string_view name, const std::string& text, uint64_t& to);
void parse_value(std::string_view name, const std::string& text, double& to);

template <class T>
inline constexpr bool is_vector = false;
template <class T>
inline constexpr bool is_vector<std::vector<T>> = true;
template <class T>
inline constexpr bool is_optional = false;
template <class T>
inline constexpr bool is_optional<std::optional<T>> = true;

class Cli {
 public:
  Cli(std::string program, std::vector<std::string> arguments);
  ~Cli();

  // ---- before parse()

  // What the tool does: the first lines of --help.
  void about(std::string text);

  // A whole command line, shown by --help and where an argument is missing.
  void example(std::string command_line);

  // For tools with commands (`sft-data import ted`), before anything else: takes the words of one
  // of `commands` (name, what it does) off the front of the arguments and returns its name.
  std::string command(const std::vector<std::pair<std::string, std::string>>& commands);

  // An argument without a name. Required, unless T is std::optional; a vector takes one or more.
  template <class T>
  void argument(const std::string& name, T& to, const std::string& help);

  // An option with a value: names like "-o,--output". A vector: may be given several times.
  // The value that `to` has before parse() is the default, and --help shows it.
  template <class T>
  void option(const std::string& names, T& to, const std::string& help);

  // The same for a value out of a list.
  void choice(const std::string& names, std::string& to, std::vector<std::string> choices,
              const std::string& help);

  // An option without a value.
  void flag(const std::string& names, bool& to, const std::string& help);

  // ---- parse() and after

  void parse();
  bool given(std::string_view name) const;  // "--seed" stood on the command line

  bool json() const { return json_; }
  int threads() const { return threads_; }      // of the OpenMP pool
  uint64_t seed() const { return seed_; }       // default 0
  bool quiet() const { return quiet_; }         // -q: no progress, no remarks
  int verbosity() const { return verbosity_; }  // times -v was given

  const std::string& program() const { return program_; }
  const std::vector<std::string>& command_line() const { return command_line_; }  // as typed

  // One line for people on stderr, unless -q.
  template <class... Args>
  void say(fmt::format_string<Args...> format, Args&&... args) const {
    say_line(fmt::format(format, std::forward<Args>(args)...));
  }

 private:
  enum class Count { one, optional, some, any };
  using Assign = std::function<void(std::string_view name, const std::string& text)>;
  struct Parser;

  void add(const std::string& names, Count count, Assign assign, const std::string& help,
           const std::string& type, const std::string& default_value);
  void say_line(const std::string& text) const;

  std::string program_, example_;
  std::vector<std::string> arguments_, command_line_;
  std::unique_ptr<Parser> parser_;
  bool json_ = false, quiet_ = false;
  int threads_ = 0, verbosity_ = 0;
  uint64_t seed_ = 0;
};

// Runs `body` and returns the exit code: an Error is printed as `name: error: WHERE: WHAT` and
// `hint: ...` (with --json as one JSON object, still on stderr) and gives its kind; no memory left
// gives `resource`; any other exception is `internal`. A reader of stdout that went away ends the
// tool quietly with 141, as SIGPIPE would; a training run lives on.
int run_tool(int argc, char** argv, std::string_view name, const std::function<void(Cli&)>& body);

// One line of progress on stderr: redrawn in place on a terminal, else one line every 30 s.
//   train 12400/50000 24.8% | 31.2/s | loss 0.412 | eta 3h41m
class Progress {
 public:
  // Silent with -q.
  explicit Progress(const Cli& cli);
  // For tests, and for output elsewhere: `clock` in seconds.
  Progress(std::function<void(std::string_view)> write, bool terminal,
           std::function<double()> clock);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // Rate and ETA count from here; `unit` stands behind the rate ("utt" -> "31.2 utt/s").
  void phase(std::string name, std::string unit = "");
  // total 0: not known. `extra`: further fields, already joined by " | ".
  void update(double done, double total, std::string_view extra = "");
  // Ends the line in place, after drawing the last state.
  void finish();

 private:
  void draw();

  std::function<void(std::string_view)> write_;  // empty: silent
  bool terminal_ = false;
  std::function<double()> clock_;
  std::string phase_, unit_, line_;
  double started_ = 0, drawn_ = -1e30, first_ = -1;
  bool pending_ = false, open_ = false;
};

// 13281 -> "3h41m", 75 -> "1m15s", 4.2 -> "4s".
std::string duration_text(double seconds);

// ---- templates

template <class T>
void Cli::argument(const std::string& name, T& to, const std::string& help) {
  if constexpr (is_vector<T>) {
    add(
        name, Count::some, [&to](auto n, auto& text) { parse_value(n, text, to.emplace_back()); },
        help, "", "");
  } else if constexpr (is_optional<T>) {
    add(
        name, Count::optional, [&to](auto n, auto& text) { parse_value(n, text, to.emplace()); },
        help, "", "");
  } else {
    add(
        name, Count::one, [&to](auto n, auto& text) { parse_value(n, text, to); }, help, "", "");
  }
}

template <class T>
void Cli::option(const std::string& names, T& to, const std::string& help) {
  if constexpr (is_vector<T>) {
    add(
        names, Count::any, [&to](auto n, auto& text) { parse_value(n, text, to.emplace_back()); },
        help, "VALUE", "");
  } else if constexpr (is_optional<T>) {
    add(
        names, Count::optional, [&to](auto n, auto& text) { parse_value(n, text, to.emplace()); },
        help, "VALUE", "");
  } else {
    add(
        names, Count::optional, [&to](auto n, auto& text) { parse_value(n, text, to); }, help,
        std::is_arithmetic_v<T> ? "N" : "VALUE", fmt::format("{}", to));
  }
}

}  // namespace sft
