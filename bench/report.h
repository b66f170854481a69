// What sft-bench prints: one table for people, or JSON (schema 1) for comparing.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
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
  double peer = 0;              // seconds of the best peer; 0: none is known
  bool in_turn = false;         // measured in turn with it
};

// What the machine's ceilings say a kernel needs at least.
struct Floor {
  double seconds = 0;
  char bound = 'L';  // C arithmetic, M memory, L latency: less than 5 us a call either way
};
Floor floor_of(const KernelRow& row, const Ceilings& ceilings);

// A stretch of one step, and the time of each op in it, the longest first. What is missing is time
// between ops.
struct PhaseTime {
  std::string name;
  double seconds = 0;
  std::vector<std::pair<std::string, double>> ops;
};

// A kernel, or a library's product, within an op, in one step on a device.
struct LaunchRow {
  std::string op, name;
  int64_t calls = 0;
  double seconds = 0;  // of all calls
};

struct ModelResult {
  std::string id, arch, task, mix, head;  // id: task/arch/mix/batch/head
  int batch = 1;
  double audio_seconds = 0;  // of one step
  int64_t frames = 0;        // of one step
  int64_t layers = 0, width = 0, ffn = 0;
  bool trains_encoder = false;
  Spread step;  // seconds
  // Of the steps that the kernels' rows are from: on a device longer, as each op is timed.
  double profiled_step = 0;
  double cpu_seconds = 0;  // of a step, all threads, median
  double unaccounted = 0;  // seconds of such a step that no kernel's row has, median
  int64_t planned_bytes = 0;
  int64_t taken_bytes = 0;  // resident; on a device what was allocated
};

// What the ops of a transformer layer move, weights apart, in units of one [frames, width] of f32;
// the budget is what a fused implementation needs.
struct LayerBytes {
  double forward = 0, backward = 0;  // 0: there is none
  static constexpr double kForward = 26, kForwardTraining = 30, kBackward = 56;
};
LayerBytes layer_bytes(const ModelResult& model, const std::vector<KernelRow>& kernels);

// The same workload by somebody else.
struct PeerSpeed {
  std::string name;       // with version and configuration
  double per_second = 0;  // audio-seconds a second, median
  double paired = 0;      // ours to theirs as measured in turn with it; 0: it was not
};

// Whether what was timed computes the right numbers.
struct Numerics {
  double error = 0, tolerance = 0;
  std::string against = {};             // what the error is of
  std::vector<std::string> wrong = {};  // what failed besides, one line each
  bool pass() const { return wrong.empty() && error <= tolerance; }
};

// Decoding of a manifest's audio.
struct IoResult {
  std::string name;
  int64_t files = 0;
  int threads = 1;
  double audio_seconds = 0;  // of a pass
  double first_seconds = 0;  // of the pass before those counted
  Spread pass = {};          // seconds
  double cpu_seconds = 0;    // of a pass, all threads, median
};

struct Report {
  std::string command;  // ceilings, ops, model, io
  uint64_t seed = 0;
  Ceilings ceilings;
  std::vector<KernelRow> kernels = {};
  std::optional<ModelResult> model = {};
  std::optional<IoResult> io = {};
  std::vector<PhaseTime> phases = {};
  std::vector<LaunchRow> launches = {};  // the longest first
  std::vector<PeerSpeed> peers = {};     // the fastest first
  std::optional<Numerics> numerics = {};
  bool bytes = false;  // of a model: layer_bytes is shown
};

// Audio-seconds a second.
Spread throughput(const ModelResult& model);
// The device, or the CPU.
std::string machine_name(const Report& report);
// Of the numbers: exact or bf16. Two reports of one class are comparable.
std::string_view math_class(const Ceilings& ceilings);

std::string report_text(const Report& report);
std::string report_json(const Report& report);

}  // namespace sft
