// What sft-bench prints: one table for people, or JSON (schema 1) for comparing.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "bench/ceilings.h"
#include "bench/spread.h"

namespace sft {

// One kernel, in one repetition.
struct KernelRow {
  std::string name;
  double calls = 1;
  Spread seconds;
  double flops = 0, bytes = 0;  // the algorithm's: each input and each output once
};

// What the machine's ceilings say a kernel needs at least.
struct Floor {
  double seconds = 0;
  char bound = 'L';  // C arithmetic, M memory, L latency: less than 5 us a call either way
};
Floor floor_of(const KernelRow& row, const Ceilings& ceilings);

struct ModelResult {
  std::string id, arch, task, mix, head;  // id: task/arch/mix/batch/head
  int batch = 1;
  double audio_seconds = 0;  // of one step
  int64_t frames = 0;        // of one step
  Spread step;               // seconds
  double cpu_seconds = 0;    // of a step, all threads, median
  double unaccounted = 0;    // seconds of a step that no kernel's row has, median
  int64_t planned_bytes = 0, resident_bytes = 0;
};

struct Report {
  std::string command;  // ceilings, ops, model
  uint64_t seed = 0;
  Ceilings ceilings;
  std::vector<KernelRow> kernels;
  std::optional<ModelResult> model;
};

std::string report_text(const Report& report);
std::string report_json(const Report& report);

}  // namespace sft
