// Two reports of sft-bench against each other.
#pragma once

#include <string>
#include <vector>

namespace sft {

struct ComparedRow {
  std::string name;
  double before = 0, after = 0;                         // median seconds
  double slower() const { return after / before - 1; }  // 0.05: 5 % slower
};

struct Comparison {
  std::vector<ComparedRow> rows;         // of both reports
  std::vector<std::string> only_before;  // gone
  std::vector<std::string> remarks;      // another machine, another number of threads
};

// Files written by `sft-bench --json`. A model's row is its step, then its kernels. Kind::input: no
// report; Kind::usage: reports of two different workloads, or in two different arithmetics.
Comparison compare_reports(const std::string& before, const std::string& after);

}  // namespace sft
