// All tests. `tests` alone runs everything; doctest's options (-tc=, -sc=, ...) choose.
// Closes with "N passed, N failed, N skipped" (test cases).
//   --launches=FILE  what emulated kernels were launched with, for tests/gpu_check/resources.py
#include "engine/cpu/isa.h"
#include "engine/cuda/emulator/counts.h"
#include "tests/doctest.h"
#include "tests/skipped.h"

#include <fmt/format.h>

#include <fstream>
#include <span>
#include <string>
#include <string_view>

int main(int argc, char** argv);

namespace {

std::string closing;

struct Listener : doctest::IReporter {
  explicit Listener(const doctest::ContextOptions&) {}
  void report_query(const doctest::QueryData&) override {}
  void test_run_start() override {}
  void test_run_end(const doctest::TestRunStats& stats) override {
    const size_t run = stats.numTestCasesPassingFilters - stats.numTestCasesFailed;
    const size_t skipped = sft::test::skipped_cases().size();
    closing = fmt::format("{} passed, {} failed, {} skipped", run - skipped,
                          stats.numTestCasesFailed, skipped);
  }
  void test_case_start(const doctest::TestCaseData&) override {}
  void test_case_reenter(const doctest::TestCaseData&) override {}
  void test_case_end(const doctest::CurrentTestCaseStats&) override {}
  void test_case_exception(const doctest::TestCaseException&) override {}
  void subcase_start(const doctest::SubcaseSignature&) override {}
  void subcase_end() override {}
  void log_assert(const doctest::AssertData&) override {}
  void log_message(const doctest::MessageData&) override {}
  void test_case_skipped(const doctest::TestCaseData&) override {}
};
DOCTEST_REGISTER_LISTENER("closing line", 1, Listener);

DOCTEST_REGISTER_EXCEPTION_TRANSLATOR(sft::Error& e) {
  return doctest::String(
      fmt::format("sft::Error kind {}: {}", static_cast<int>(e.kind), e.message).c_str());
}

// What the emulator ran, if this program has it.
void print_emulated() {
  if (!sft::cuda::emulator::launches) return;
  const sft::cuda::emulator::Counts counts = sft::cuda::emulator::launches();
  fmt::print("emulated: {} launches of {} kernels, {} threads\n", counts.launches, counts.kernels,
             counts.threads);
}

// A line per kernel: its distance from main (as in the symbol table), threads, shared bytes.
void write_launches(const std::string& path) {
  if (!sft::cuda::emulator::largest_blocks || path.empty()) return;
  std::ofstream file(path);
  for (const auto& [kernel, block] : sft::cuda::emulator::largest_blocks())
    file << reinterpret_cast<intptr_t>(kernel) - reinterpret_cast<intptr_t>(&main) << ' '
         << block.threads << ' ' << block.shared_bytes << '\n';
}

}  // namespace

int main(int argc, char** argv) {
  sft::cpu::choose_isa();
  doctest::Context context(argc, argv);
  const int result = context.run();
  print_emulated();
  for (const std::string_view option : std::span(argv, static_cast<size_t>(argc)))
    if (option.starts_with("--launches=")) write_launches(std::string(option.substr(11)));
  if (!closing.empty()) fmt::print("{}\n", closing);
  return result;
}
