// Runs one of our programs, for tests of what a user sees.
#pragma once

#include <string>
#include <vector>

namespace sft::test {

struct Outcome {
  int code = -1;  // exit code; 128 + signal
  std::string out, err;
  double cpu_seconds = 0;  // of the program
};

// The program's path: in $SFT_TOOLS, else beside the tests; empty if it was not built.
std::string program_path(const std::string& name);

// True, and the test reported as skipped, if the program was not built.
bool absent(const std::string& name);

// True, and the test reported as skipped, if the programs are built with AddressSanitizer, whose
// own memory no plan knows of.
bool sanitized();

// Of a program's --json: planned_bytes is within a tenth of peak_bytes.
void expect_as_planned(const Outcome& outcome);

// sft-info refuses the file, as every program would: exit code 3, one line that names it, 100 ms of
// the processor at most. Nothing if it was not built.
void expect_refused_file(const std::string& path);

// Standard input is empty. Kind::resource if the program cannot be started.
Outcome run_program(const std::string& name, const std::vector<std::string>& arguments);

}  // namespace sft::test
