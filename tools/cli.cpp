#include "tools/cli.h"

#include <fcntl.h>
#include <omp.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <charconv>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <new>
#include <nlohmann/json.hpp>
#include <system_error>

#include "build_info.h"
#include "engine/nearest.h"

namespace sft {

namespace {

struct EndOfProgram {};  // --help or --version was printed

template <class T>
void parse_number(std::string_view name, const std::string& text, T& to, const char* what) {
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, to);
  if (error == std::errc::result_out_of_range)
    fail(Kind::usage, "{}: {} is out of range (expected {})", name, printable(text), what);
  if (error != std::errc() || stop != end)
    fail(Kind::usage, "{}: '{}' (expected {})", name, printable(text), what);
}

}  // namespace

void parse_value(std::string_view, const std::string& text, std::string& to) { to = text; }
void parse_value(std::string_view name, const std::string& text, int& to) {
  parse_number(name, text, to, "a whole number");
}
void parse_value(std::string_view name, const std::string& text, int64_t& to) {
  parse_number(name, text, to, "a whole number");
}
void parse_value(std::string_view name, const std::string& text, uint64_t& to) {
  parse_number(name, text, to, "a whole number, not negative");
}
void parse_value(std::string_view name, const std::string& text, double& to) {
  parse_number(name, text, to, "a number");
  if (!std::isfinite(to)) fail(Kind::usage, "{}: {} (expected a finite number)", name, text);
}

// ---- options

struct Cli::Parser {
  struct Spec {
    CLI::Option* option;
    Count count;
    Assign assign;
  };
  CLI::App app;
  std::vector<Spec> specs;

  std::vector<std::string> option_names() const {
    std::vector<std::string> names;
    for (const CLI::Option* option : app.get_options())
      for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
    return names;
  }
};

Cli::Cli(std::string program, std::vector<std::string> arguments)
    : program_(std::move(program)),
      arguments_(std::move(arguments)),
      parser_(std::make_unique<Parser>()) {
  command_line_ = arguments_;
  command_line_.insert(command_line_.begin(), program_);
}

Cli::~Cli() = default;

void Cli::about(std::string text) { parser_->app.description(std::move(text)); }

void Cli::example(std::string command_line) {
  parser_->app.footer("Example: " + command_line);
  example_ = std::move(command_line);
}

namespace {

// Number of words at the front of `arguments` that spell `name`; 0 if they do not.
size_t spelled(const std::string& name, const std::vector<std::string>& arguments) {
  std::string so_far;
  for (size_t i = 0; i < arguments.size() && so_far.size() < name.size(); ++i) {
    so_far += (i ? " " : "") + arguments[i];
    if (so_far == name) return i + 1;
  }
  return 0;
}

}  // namespace

std::string Cli::command(const std::vector<std::pair<std::string, std::string>>& commands) {
  std::vector<std::string> names;
  for (const auto& [name, what] : commands) {
    names.push_back(name);
    if (const size_t words = spelled(name, arguments_)) {
      arguments_.erase(arguments_.begin(), arguments_.begin() + static_cast<int64_t>(words));
      program_ += " " + name;
      about(what);
      return name;
    }
  }
  if (!arguments_.empty() && arguments_[0] != "-h" && arguments_[0].rfind("--", 0) != 0)
    fail(Kind::usage, Hint{did_you_mean(arguments_[0], names)}, "{} is not a command (expected {})",
         printable(arguments_[0]), fmt::join(names, ", "));
  std::string list = "Commands:\n";
  for (const auto& [name, what] : commands) list += fmt::format("  {:<24}{}\n", name, what);
  parser_->app.footer(list);
  const bool asked = !arguments_.empty();
  parse();
  if (!asked) fail(Kind::usage, "missing command (expected {})", fmt::join(names, ", "));
  fail(Kind::usage, "a command comes first (expected {})", fmt::join(names, ", "));
}

void Cli::add(const std::string& names, Count count, Assign assign, const std::string& help,
              const std::string& type, const std::string& default_value) {
  CLI::Option* option = parser_->app.add_option(names, CLI::callback_t(), help);
  option->type_name(type.empty() ? "" : type);
  if (!default_value.empty()) option->default_str(default_value);
  option->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  if (count == Count::some) {
    option->expected(1, 1 << 20)->allow_extra_args(true);
  } else {
    option->expected(1)->allow_extra_args(false);
  }
  option->required(count == Count::one || count == Count::some);  // shown so in the usage line
  parser_->specs.push_back({option, count, std::move(assign)});
}

void Cli::flag(const std::string& names, bool& to, const std::string& help) {
  parser_->app.add_flag(names, to, help);
}

void Cli::choice(const std::string& names, std::string& to, std::vector<std::string> choices,
                 const std::string& help) {
  const std::string type = fmt::format("{{{}}}", fmt::join(choices, "|"));
  add(
      names, Count::optional,
      [&to, choices = std::move(choices)](std::string_view name, const std::string& text) {
        if (std::find(choices.begin(), choices.end(), text) == choices.end())
          fail(Kind::usage, Hint{did_you_mean(text, choices)}, "{}: {} (expected {})", name,
               printable(text), fmt::join(choices, ", "));
        to = text;
      },
      help, type, to);
}

void Cli::parse() {
  CLI::App& app = parser_->app;
  app.name(program_);
  app.set_help_flag("-h,--help", "print this and stop")->group("Every tool");
  app.add_flag_callback(
         "--version", [] {}, "print the version and stop")
      ->group("Every tool");
  app.add_flag("--json", json_, "results on stdout, errors on stderr, as JSON")
      ->group("Every tool");
  option("--threads", threads_, "threads to compute with; 0: all cores");
  parser_->specs.back().option->group("Every tool");
  option("--seed", seed_, "of every random choice");
  parser_->specs.back().option->group("Every tool");
  app.add_flag("-q,--quiet", quiet_, "no progress and no remarks")->group("Every tool");
  app.add_flag("-v,--verbose", verbosity_, "say more; twice: more still")->group("Every tool");
  app.allow_extras();

  try {
    app.parse(std::vector<std::string>(arguments_.rbegin(), arguments_.rend()));
  } catch (const CLI::CallForHelp&) {
    fmt::print("{}", app.help());
    throw EndOfProgram{};
  } catch (const CLI::RequiredError&) {
    // said below, after what is wrong with what is there
  } catch (const CLI::ParseError& e) {
    fail(Kind::usage, Hint{fmt::format("see {} --help", program_)}, "{}", printable(e.what()));
  }
  if (app.count("--version") > 0) {
    fmt::print("{} {}\n", program_, SFT_VERSION);
    throw EndOfProgram{};
  }
  for (const std::string& extra : app.remaining()) {
    if (extra == "--") continue;
    const bool option = extra.size() > 1 && extra[0] == '-';
    const std::vector<std::string> names = parser_->option_names();
    std::string hint = option ? did_you_mean(extra.substr(0, extra.find('=')), names) : "";
    if (hint.empty()) hint = fmt::format("see {} --help", program_);
    fail(Kind::usage, Hint{std::move(hint)}, "{} {}",
         option ? "unknown option" : "unexpected argument", printable(extra));
  }
  for (const Parser::Spec& spec : parser_->specs) {
    const std::vector<std::string>& values = spec.option->results();
    const std::string name = spec.option->get_name();
    const bool required = spec.count == Count::one || spec.count == Count::some;
    if (required && values.empty())
      fail(Kind::usage,
           Hint{example_.empty() ? fmt::format("see {} --help", program_) : "as in " + example_},
           "missing {}", name);
    if ((spec.count == Count::one || spec.count == Count::optional) && values.size() > 1)
      fail(Kind::usage, "{} was given {} times (expected once)", name, values.size());
    for (const std::string& value : values) spec.assign(name, value);
  }
  if (threads_ < 0) fail(Kind::usage, "--threads: {} (expected 0 or more)", threads_);
  if (threads_ > 0) omp_set_num_threads(threads_);
  threads_ = omp_get_max_threads();
}

bool Cli::given(std::string_view name) const {
  const CLI::Option* option = parser_->app.get_option_no_throw(std::string(name));
  CHECK(option, "{} has no option {}", program_, name);
  return option->count() > 0;
}

namespace {

bool stderr_is_terminal() {
  const char* term = std::getenv("TERM");
  return isatty(STDERR_FILENO) && term && std::strcmp(term, "dumb") != 0;
}

void write_stderr(std::string_view text) {
  // A closed stderr is no reason to stop.
  if (std::fwrite(text.data(), 1, text.size(), stderr) == text.size()) std::fflush(stderr);
}

}  // namespace

void Cli::say_line(const std::string& text) const {
  if (quiet_) return;
  const char* clear_progress = stderr_is_terminal() ? "\r\x1b[K" : "";
  write_stderr(fmt::format("{}{}: {}\n", clear_progress, program_, text));
}

// ---- errors

namespace {

constexpr int kBrokenPipe = 128 + SIGPIPE;

const char* kind_name(Kind kind) {
  switch (kind) {
    case Kind::internal:
      return "internal";
    case Kind::usage:
      return "usage";
    case Kind::input:
      return "input";
    case Kind::resource:
      return "resource";
    case Kind::diverged:
      return "diverged";
    case Kind::check:
      return "check";
    case Kind::rank:
      return "rank";
    case Kind::stopped:
      return "stopped";
  }
  return "internal";
}

int report(std::string_view name, bool json, const Error& e) {
  const int code = static_cast<int>(e.kind);
  if (json) {
    const nlohmann::json error = {{"tool", name},
                                  {"kind", kind_name(e.kind)},
                                  {"code", code},
                                  {"message", e.message},
                                  {"hint", e.hint}};
    using Json = nlohmann::json;
    write_stderr(Json{{"error", error}}.dump(-1, ' ', false, Json::error_handler_t::replace) +
                 "\n");
    return code;
  }
  const char* clear_progress = stderr_is_terminal() ? "\r\x1b[K" : "";
  write_stderr(fmt::format("{}{}: error: {}\n", clear_progress, name, e.message));
  if (!e.hint.empty()) write_stderr(fmt::format("hint: {}\n", e.hint));
  return code;
}

// A descriptor of these that is closed would be given to the next file opened, and then be
// written over by whatever is printed.
void open_standard_files() {
  for (int fd : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO})
    if (fcntl(fd, F_GETFD) == -1 && open("/dev/null", O_RDWR) != fd)
      fail(Kind::resource, "/dev/null: {}", std::strerror(errno));
}

// What was printed may still fail to arrive: a full disk behind a redirection.
void flush_stdout() {
  errno = 0;
  if (std::fflush(stdout) == 0 && !std::ferror(stdout)) return;
  throw std::system_error(errno, std::generic_category(), "standard output");
}

int run(const std::vector<std::string>& arguments, std::string_view name,
        const std::function<void(Cli&)>& body) {
  open_standard_files();
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ,
              SIG_IGN);  // a write over the limit of file sizes fails like one to a full disk
  Cli cli{std::string(name), arguments};
  try {
    body(cli);
  } catch (const EndOfProgram&) {
  }
  flush_stdout();
  return 0;
}

}  // namespace

int run_tool(int argc, char** argv, std::string_view name, const std::function<void(Cli&)>& body) {
  const std::vector<std::string> arguments(argv + 1, argv + std::max(argc, 1));
  const bool json = std::find(arguments.begin(), arguments.end(), "--json") != arguments.end();
  const char* please = "this is a bug in sft; please report it with the command line";
  try {
    return run(arguments, name, body);
  } catch (const Error& e) {
    std::fflush(stdout);
    return report(name, json, e);
  } catch (const std::system_error& e) {
    if (e.code() == std::errc::broken_pipe) return kBrokenPipe;
    return report(name, json, Error(Kind::resource, e.what(), ""));
  } catch (const std::bad_alloc&) {
    return report(name, json, Error(Kind::resource, "out of memory", "make the work smaller"));
  } catch (const std::exception& e) {
    return report(name, json, Error(Kind::internal, printable(e.what()), please));
  } catch (...) {
    return report(name, json, Error(Kind::internal, "an unknown exception", please));
  }
}

// ---- progress

std::string duration_text(double seconds) {
  const auto s = static_cast<int64_t>(std::clamp(seconds, 0.0, 1e9));
  if (s >= 86400) return fmt::format("{}d{:02}h", s / 86400, s % 86400 / 3600);
  if (s >= 3600) return fmt::format("{}h{:02}m", s / 3600, s % 3600 / 60);
  if (s >= 60) return fmt::format("{}m{:02}s", s / 60, s % 60);
  return fmt::format("{}s", s);
}

namespace {

double monotonic_seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

size_t terminal_width() {
  winsize size{};
  const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : 80;
}

}  // namespace

Progress::Progress(const Cli& cli) : clock_(monotonic_seconds) {
  if (!cli.quiet()) write_ = write_stderr;
  terminal_ = stderr_is_terminal();
}

Progress::Progress(std::function<void(std::string_view)> write, bool terminal,
                   std::function<double()> clock)
    : write_(std::move(write)), terminal_(terminal), clock_(std::move(clock)) {}

Progress::~Progress() { finish(); }

void Progress::phase(std::string name, std::string unit) {
  finish();
  phase_ = std::move(name);
  unit_ = std::move(unit);
  started_ = clock_();
  drawn_ = terminal_ ? -1e30 : started_;
  first_ = -1;
}

void Progress::update(double done, double total, std::string_view extra) {
  if (!write_) return;
  const double now = clock_();
  if (first_ < 0) first_ = done;
  const double elapsed = now - started_, rate = elapsed > 0 ? (done - first_) / elapsed : 0;
  line_ = fmt::format("{} {:.0f}", phase_, done);
  if (total > 0) line_ += fmt::format("/{:.0f} {:.1f}%", total, 100 * done / total);
  if (rate > 0) line_ += fmt::format(" | {:.3g}{}{}/s", rate, unit_.empty() ? "" : " ", unit_);
  if (!extra.empty()) line_ += fmt::format(" | {}", extra);
  if (rate > 0 && total > done) line_ += " | eta " + duration_text((total - done) / rate);
  pending_ = true;
  if (now - drawn_ < (terminal_ ? 0.1 : 30.0)) return;
  drawn_ = now;
  draw();
}

void Progress::draw() {
  if (terminal_) {
    write_("\r\x1b[K" + line_.substr(0, terminal_width() - 1));
  } else {
    write_(line_ + "\n");
  }
  open_ = true;
  pending_ = false;
}

void Progress::finish() {
  if (write_ && open_) {
    if (pending_) draw();
    if (terminal_) write_("\n");
  }
  open_ = pending_ = false;
}

}  // namespace sft
