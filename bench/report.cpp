#include "bench/report.h"

#include <fmt/chrono.h>
#include <omp.h>

#include <algorithm>
#include <ctime>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>

#include "build_info.h"
#include "engine/cpu/isa.h"

namespace sft {
namespace {

using Json = nlohmann::json;

constexpr double kLatency = 5e-6;  // seconds a call

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown";
}

double load_average() {
  double load = 0;
  std::ifstream("/proc/loadavg") >> load;
  return load;
}

double total_flops(const Report& report) {
  double flops = 0;
  for (const KernelRow& row : report.kernels) flops += row.flops;
  return flops;
}

void append_kernels(std::string& out, const Report& report) {
  const auto to = std::back_inserter(out);
  size_t width = 6;
  for (const KernelRow& row : report.kernels) width = std::max(width, row.name.size());
  fmt::format_to(to, "{:<{}} {:>5} {:>10} {:>21} {:>6} {:>8} {:>8} {:>6} {:>6} {:>5} {:>5}\n",
                 "kernel", width, "n", "us", "(min - max)", "share", "GFLOP", "MB", "GF/s", "GB/s",
                 "bound", "%");
  const double step = report.model ? report.model->step.median : 0;
  for (const KernelRow& row : report.kernels) {
    const Floor floor = floor_of(row, report.ceilings);
    const double t = row.seconds.median;
    fmt::format_to(to,
                   "{:<{}} {:>5.0f} {:>10.1f} {:>21} {:>6} {:>8.3f} {:>8.2f} {:>6.1f} "
                   "{:>6.1f} {:>5} {:>5.1f}\n",
                   row.name, width, row.calls, t * 1e6,
                   fmt::format("({:.1f} - {:.1f})", row.seconds.min * 1e6, row.seconds.max * 1e6),
                   step > 0 ? fmt::format("{:.1f} %", 100 * t / step) : "", row.flops / 1e9,
                   row.bytes / 1e6, row.flops / t / 1e9, row.bytes / t / 1e9, floor.bound,
                   100 * floor.seconds / t);
  }
}

Spread throughput(const ModelResult& model) {
  const double audio = model.audio_seconds;
  return {audio / model.step.median, audio / model.step.max, audio / model.step.min, model.step.n};
}

void append_model(std::string& out, const Report& report) {
  const ModelResult& m = *report.model;
  const auto to = std::back_inserter(out);
  const double left = m.unaccounted, mib = 1 << 20;
  const Spread rate = throughput(m);
  fmt::format_to(to, "unaccounted {:.1f} us ({:.1f} %)\n", left * 1e6, 100 * left / m.step.median);
  fmt::format_to(to,
                 "{}\n  {:.2f} audio-seconds/s ({:.2f} - {:.2f}), a step {:.1f} ms, {} frames\n",
                 m.id, rate.median, rate.min, rate.max, m.step.median * 1e3, m.frames);
  const double limit = total_flops(report) / report.ceilings.fma_one;  // processor seconds
  fmt::format_to(to,
                 "  {:.1f} GFLOP: {:.1f} % of the arithmetic limit; {:.1f} ms of processor time: "
                 "{:.1f} % of it\n",
                 total_flops(report) / 1e9,
                 100 * total_flops(report) / m.step.median / report.ceilings.fma_all,
                 m.cpu_seconds * 1e3, 100 * limit / m.cpu_seconds);
  fmt::format_to(to, "  memory: planned {:.0f} MiB, resident {:.0f} MiB ({:.2f} of the plan)\n",
                 static_cast<double>(m.planned_bytes) / mib,
                 static_cast<double>(m.resident_bytes) / mib,
                 static_cast<double>(m.resident_bytes) / static_cast<double>(m.planned_bytes));
}

Json to_json(const Spread& s) {
  return {{"median", s.median}, {"min", s.min}, {"max", s.max}, {"n", s.n}};
}

Spread scaled(Spread s, double factor) {
  return {s.median * factor, s.min * factor, s.max * factor, s.n};
}

Json to_json(const KernelRow& row, const Ceilings& ceilings) {
  const Floor floor = floor_of(row, ceilings);
  return {{"name", row.name},
          {"n", row.calls},
          {"us", row.seconds.median * 1e6},
          {"min", row.seconds.min * 1e6},
          {"max", row.seconds.max * 1e6},
          {"flop", row.flops},
          {"bytes", row.bytes},
          {"bound", std::string(1, floor.bound)},
          {"floor_us", floor.seconds * 1e6}};
}

}  // namespace

Floor floor_of(const KernelRow& row, const Ceilings& ceilings) {
  const double arithmetic = row.flops / ceilings.fma_all, memory = row.bytes / ceilings.copy;
  const double seconds = std::max(arithmetic, memory);
  if (seconds < kLatency * row.calls) return {seconds, 'L'};
  return {seconds, arithmetic >= memory ? 'C' : 'M'};
}

std::string report_text(const Report& report) {
  const Ceilings& c = report.ceilings;
  std::string out = fmt::format(
      "{}, {} threads, {}, load {:.1f}\n"
      "ceilings: fp32 FMA {:.0f} GF/s one thread, {:.0f} all; memory read {:.1f} GB/s, copy "
      "{:.1f}\n",
      cpu_name(), omp_get_max_threads(), cpu::isa(), load_average(), c.fma_one / 1e9,
      c.fma_all / 1e9, c.read / 1e9, c.copy / 1e9);
  if (!report.kernels.empty()) append_kernels(out, report);
  if (report.model) append_model(out, report);
  return out;
}

std::string report_json(const Report& report) {
  const Ceilings& c = report.ceilings;
  Json json = {
      {"schema", 1},
      {"command", report.command},
      {"time", fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)))},
      {"build", {{"version", SFT_VERSION}, {"compiler", __VERSION__}}},
      {"host",
       {{"cpu", cpu_name()},
        {"threads", omp_get_max_threads()},
        {"isa", cpu::isa()},
        {"load", load_average()}}},
      {"ceilings",
       {{"fma_one", c.fma_one}, {"fma_all", c.fma_all}, {"read", c.read}, {"copy", c.copy}}},
      {"kernels", Json::array()}};
  for (const KernelRow& row : report.kernels) json["kernels"].push_back(to_json(row, c));
  if (report.model) {
    const ModelResult& m = *report.model;
    json["workload"] = {
        {"id", m.id},     {"arch", m.arch},   {"task", m.task},      {"mix", m.mix},
        {"head", m.head}, {"batch", m.batch}, {"seed", report.seed}, {"audio_s", m.audio_seconds}};
    json["numerics"] = {{"class", "exact"}};
    json["result"] = {
        {"as_per_s", to_json(throughput(m))}, {"step_ms", to_json(scaled(m.step, 1e3))},
        {"cpu_ms", m.cpu_seconds * 1e3},      {"unaccounted_us", m.unaccounted * 1e6},
        {"flop", total_flops(report)},        {"planned_bytes", m.planned_bytes},
        {"mem_bytes", m.resident_bytes}};
  }
  return json.dump(1) + "\n";
}

}  // namespace sft
