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

bool has_peers(const Report& report) {
  return std::any_of(report.kernels.begin(), report.kernels.end(),
                     [](const KernelRow& row) { return row.peer > 0; });
}

void append_kernels(std::string& out, const Report& report) {
  const auto to = std::back_inserter(out);
  size_t width = 6;
  for (const KernelRow& row : report.kernels) width = std::max(width, row.name.size());
  fmt::format_to(to, "{:<{}} {:>5} {:>10} {:>21} {:>6} {:>8} {:>8} {:>6} {:>6} {:>5} {:>5}{}\n",
                 "kernel", width, "n", "us", "(min - max)", "share", "GFLOP", "MB",
                 report.ceilings.device ? "TF/s" : "GF/s", "GB/s", "bound", "%",
                 has_peers(report) ? "   peer" : "");
  const double step = report.model ? report.model->profiled_step : 0;
  const double rate_unit = report.ceilings.device ? 1e12 : 1e9;
  for (const KernelRow& row : report.kernels) {
    const Floor floor = floor_of(row, report.ceilings);
    const double t = row.seconds.median;
    fmt::format_to(
        to,
        "{:<{}} {:>5.0f} {:>10.1f} {:>21} {:>6} {:>8.3f} {:>8.2f} {:>6.1f} "
        "{:>6.1f} {:>5} {:>5.1f}{}\n",
        row.name, width, row.calls, t * 1e6,
        fmt::format("({:.1f} - {:.1f})", row.seconds.min * 1e6, row.seconds.max * 1e6),
        step > 0 ? fmt::format("{:.1f} %", 100 * t / step) : "", row.flops / 1e9, row.bytes / 1e6,
        row.flops / t / rate_unit, row.bytes / t / 1e9, floor.bound, 100 * floor.seconds / t,
        row.peer > 0 ? fmt::format(" {}{:.2f}x", row.in_turn ? ' ' : '~', row.peer / t) : "");
  }
}

// "100 (90 - 120)", in GF/s
std::string moments_text(const Spread& rate) {
  return fmt::format("{:.0f} ({:.0f} - {:.0f})", rate.median / 1e9, rate.min / 1e9, rate.max / 1e9);
}

void append_moments(std::string& out, const Report& report) {
  const Moments& m = report.ceilings.moments;
  if (m.tile.n == 0) return;
  fmt::format_to(std::back_inserter(out),
                 "between the repetitions, median of {} (min - max): FMA {} GF/s, tile {}\n",
                 m.tile.n, moments_text(m.fma), moments_text(m.tile));
  if (!report.model) return;
  const double rate = total_flops(report) / report.model->step.median;
  const double busy = total_flops(report) / report.model->cpu_seconds;
  fmt::format_to(
      std::back_inserter(out),
      "  a step: {:.0f} GF/s, {:.1f} % of the median tile, {:.1f} % of the best; a second "
      "of processor time {:.0f} GF, {:.1f} % of the tile's {:.0f}\n",
      rate / 1e9, 100 * rate / m.tile.median, 100 * rate / report.ceilings.tile(), busy / 1e9,
      100 * busy / m.tile_busy.median, m.tile_busy.median / 1e9);
}

void append_io(std::string& out, const Report& report) {
  if (!report.io) return;
  const IoResult& io = *report.io;
  fmt::format_to(std::back_inserter(out),
                 "io {}: {} files, {:.1f} s of audio decoded by {} threads in {:.3f} s ({:.3f} - "
                 "{:.3f}; the first time {:.3f})\n  {:.0f} audio-seconds/s; {:.3f} s of processor "
                 "time\n",
                 printable(io.name), io.files, io.audio_seconds, io.threads, io.pass.median,
                 io.pass.min, io.pass.max, io.first_seconds, io.audio_seconds / io.pass.median,
                 io.cpu_seconds);
}

void append_bytes(std::string& out, const Report& report) {
  if (!report.model || !report.bytes || report.model->task.starts_with("probe:")) return;
  const LayerBytes units = layer_bytes(*report.model, report.kernels);
  const bool trains = report.model->task != "extract";
  const auto to = std::back_inserter(out);
  fmt::format_to(to,
                 "bytes of a layer without weights, in [frames, width]: forward {:.1f} (budget {})",
                 units.forward, trains ? LayerBytes::kForwardTraining : LayerBytes::kForward);
  if (units.backward > 0)
    fmt::format_to(to, ", backward {:.1f} ({})", units.backward, LayerBytes::kBackward);
  out += "\n";
}

void append_numerics(std::string& out, const Report& report) {
  if (!report.numerics) return;
  const Numerics& n = *report.numerics;
  const auto to = std::back_inserter(out);
  fmt::format_to(to, "numerics: {}; {}: off by {:.2g}, allowed {:.2g}: {}\n",
                 math_class(report.ceilings), n.against, n.error, n.tolerance,
                 n.pass() ? "PASS" : "INVALID");
  for (const std::string& line : n.wrong) fmt::format_to(to, "INVALID {}\n", line);
}

void append_launches(std::string& out, const Report& report) {
  if (report.launches.empty()) return;
  const auto to = std::back_inserter(out);
  size_t width = 6, op_width = 2;
  for (const LaunchRow& row : report.launches)
    width = std::max(width, row.name.size()), op_width = std::max(op_width, row.op.size());
  fmt::format_to(to, "{:<{}} {:<{}} {:>5} {:>10} {:>6}\n", "launch", width, "op", op_width, "n",
                 "us", "share");
  for (const LaunchRow& row : report.launches)
    fmt::format_to(to, "{:<{}} {:<{}} {:>5} {:>10.1f} {:>4.1f} %\n", row.name, width, row.op,
                   op_width, row.calls, row.seconds * 1e6,
                   100 * row.seconds / report.model->profiled_step);
}

void append_model(std::string& out, const Report& report) {
  const ModelResult& m = *report.model;
  const auto to = std::back_inserter(out);
  const double left = m.unaccounted, mib = 1 << 20;
  const Spread rate = throughput(m);
  fmt::format_to(to, "unaccounted {:.1f} us ({:.1f} %)\n", left * 1e6,
                 100 * left / m.profiled_step);
  fmt::format_to(to,
                 "{}\n  {:.2f} audio-seconds/s ({:.2f} - {:.2f}), a step {:.1f} ms, {} frames\n",
                 m.id, rate.median, rate.min, rate.max, m.step.median * 1e3, m.frames);
  const bool device = report.ceilings.device.has_value();
  fmt::format_to(to,
                 "  {:.1f} GFLOP: {:.1f} % of the arithmetic limit; {:.1f} ms of processor time",
                 total_flops(report) / 1e9,
                 100 * total_flops(report) / m.step.median / report.ceilings.arithmetic(),
                 m.cpu_seconds * 1e3);
  const double limit = total_flops(report) / report.ceilings.fma_one;  // processor seconds
  if (device)
    fmt::format_to(to, "; {:.1f} ms a step while each op is timed\n", m.profiled_step * 1e3);
  else
    fmt::format_to(to, ": {:.1f} % of it\n", 100 * limit / m.cpu_seconds);
  fmt::format_to(to, "  memory{}: planned {:.0f} MiB, {} {:.0f} MiB ({:.2f} of the plan)\n",
                 device ? " of the device" : "", static_cast<double>(m.planned_bytes) / mib,
                 device ? "taken" : "resident", static_cast<double>(m.taken_bytes) / mib,
                 static_cast<double>(m.taken_bytes) / static_cast<double>(m.planned_bytes));
}

// A ratio of medians from two sessions is marked ~.
void append_peers(std::string& out, const Report& report) {
  for (const PeerSpeed& peer : report.peers) {
    fmt::format_to(std::back_inserter(out), "  ~{:.2f}x of {}: {:.2f} audio-seconds/s",
                   throughput(*report.model).median / peer.per_second, peer.name, peer.per_second);
    if (peer.paired > 0)
      fmt::format_to(std::back_inserter(out), "; measured in turn with it {:.2f}x", peer.paired);
    out += "\n";
  }
}

Json to_json(const Spread& s) {
  return {{"median", s.median}, {"min", s.min}, {"max", s.max}, {"n", s.n}};
}

Spread scaled(Spread s, double factor) {
  return {s.median * factor, s.min * factor, s.max * factor, s.n};
}

Json to_json(const KernelRow& row, const Ceilings& ceilings) {
  const Floor floor = floor_of(row, ceilings);
  Json json{{"name", row.name},
            {"n", row.calls},
            {"us", row.seconds.median * 1e6},
            {"min", row.seconds.min * 1e6},
            {"max", row.seconds.max * 1e6},
            {"flop", row.flops},
            {"bytes", row.bytes},
            {"bound", std::string(1, floor.bound)},
            {"floor_us", floor.seconds * 1e6}};
  if (row.peer > 0) json["peer_us"] = row.peer * 1e6;
  return json;
}

}  // namespace

LayerBytes layer_bytes(const ModelResult& model, const std::vector<KernelRow>& kernels) {
  constexpr std::string_view kOfLayers[] = {"attention", "dropout",    "ffn",
                                            "linear",    "layer_norm", "rel_gate"};
  const auto count = [](int64_t n) { return static_cast<double>(n); };
  const double unit = count(model.frames * model.width * model.layers) * sizeof(float);
  const double weights =
      count((4 * model.width + 2 * model.ffn) * model.width * model.layers) * sizeof(float);
  double forward = -weights, backward = model.trains_encoder ? -2 * weights : 0;
  for (const KernelRow& row : kernels)
    for (const std::string_view name : kOfLayers) {
      if (row.name == name) forward += row.bytes;
      if (row.name == std::string(name) + ".backward" && model.trains_encoder)
        backward += row.bytes;
    }
  return {forward / unit, backward / unit};
}

Spread throughput(const ModelResult& model) {
  const double audio = model.audio_seconds;
  return {audio / model.step.median, audio / model.step.max, audio / model.step.min, model.step.n};
}

std::string machine_name(const Report& report) {
  return report.ceilings.device ? report.ceilings.device->name : cpu_name();
}

std::string_view math_class(const Ceilings& ceilings) {
  return name(ceilings.device ? ceilings.device->math : ceilings.math);
}

Floor floor_of(const KernelRow& row, const Ceilings& ceilings) {
  const double arithmetic = row.flops / ceilings.arithmetic(),
               memory = row.bytes / ceilings.bandwidth();
  const double seconds = std::max(arithmetic, memory);
  if (seconds < kLatency * row.calls) return {seconds, 'L'};
  return {seconds, arithmetic >= memory ? 'C' : 'M'};
}

std::string report_text(const Report& report) {
  const Ceilings& c = report.ceilings;
  std::string out = fmt::format(
      "{}, {} threads, {}, load {:.1f}\n"
      "ceilings: fp32 FMA {:.0f} GF/s one thread, {:.0f} all; {} tile {:.0f} all; memory read "
      "{:.1f} GB/s, copy {:.1f}\n",
      cpu_name(), omp_get_max_threads(), cpu::isa(), load_average(), c.fma_one / 1e9,
      c.fma_all / 1e9, c.math == Math::exact ? "f32" : name(c.math), c.tile() / 1e9, c.read / 1e9,
      c.copy / 1e9);
  if (c.device)
    fmt::format_to(std::back_inserter(out),
                   "{}, {}\nceilings: products {:.1f} TF/s bf16, {:.1f} f32; memory copied {:.0f} "
                   "GB/s\n",
                   c.device->name, math_class(c), c.device->bf16 / 1e12, c.device->f32 / 1e12,
                   c.device->copy / 1e9);
  if (!report.kernels.empty()) append_kernels(out, report);
  if (report.model) append_launches(out, report), append_model(out, report);
  append_moments(out, report);
  if (report.model) append_peers(out, report);
  append_io(out, report), append_bytes(out, report), append_numerics(out, report);
  return out;
}

std::string report_json(const Report& report) {
  const Ceilings& c = report.ceilings;
  Json json = {{"schema", 1},
               {"command", report.command},
               {"time", fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(std::time(nullptr)))},
               {"build", {{"version", SFT_VERSION}, {"compiler", __VERSION__}}},
               {"host",
                {{"cpu", cpu_name()},
                 {"threads", omp_get_max_threads()},
                 {"isa", cpu::isa()},
                 {"load", load_average()}}},
               {"ceilings",
                {{"fma_one", c.fma_one},
                 {"fma_all", c.fma_all},
                 {"narrow_all", c.narrow_all},
                 {"f32_tile_all", c.f32_tile_all},
                 {"read", c.read},
                 {"copy", c.copy}}},
               {"kernels", Json::array()}};
  if (c.device) {
    const DeviceCeilings& d = *c.device;
    json["device"] = {{"name", d.name}};
    json["ceilings"].update(
        Json{{"device_bf16", d.bf16}, {"device_f32", d.f32}, {"device_copy", d.copy}});
  }
  json["numerics"] = {{"class", math_class(c)}};
  if (report.numerics) {
    const Numerics& n = *report.numerics;
    json["numerics"].update(Json{{"error", n.error},
                                 {"tol", n.tolerance},
                                 {"against", n.against},
                                 {"wrong", n.wrong},
                                 {"pass", n.pass()}});
  }
  if (c.moments.tile.n)
    json["ceilings"]["moments"] = {{"fma", to_json(c.moments.fma)},
                                   {"tile", to_json(c.moments.tile)},
                                   {"tile_busy", to_json(c.moments.tile_busy)}};
  for (const KernelRow& row : report.kernels) json["kernels"].push_back(to_json(row, c));
  if (report.io) {
    const IoResult& io = *report.io;
    json["io"] = {{"name", io.name},
                  {"files", io.files},
                  {"threads", io.threads},
                  {"audio_s", io.audio_seconds},
                  {"first_s", io.first_seconds},
                  {"pass_s", to_json(io.pass)},
                  {"cpu_s", io.cpu_seconds},
                  {"as_per_s", io.audio_seconds / io.pass.median}};
  }
  if (report.model) {
    const ModelResult& m = *report.model;
    json["peers"] = Json::array();
    for (const PeerSpeed& peer : report.peers)
      json["peers"].push_back({{"peer", peer.name},
                               {"as_per_s", peer.per_second},
                               {"ratio", throughput(m).median / peer.per_second},
                               {"paired", peer.paired > 0 ? Json(peer.paired) : Json()}});
    if (!report.launches.empty()) json["launches"] = Json::array();
    for (const LaunchRow& row : report.launches)
      json["launches"].push_back(
          {{"op", row.op}, {"name", row.name}, {"n", row.calls}, {"us", row.seconds * 1e6}});
    json["workload"] = {
        {"id", m.id},     {"arch", m.arch},   {"task", m.task},      {"mix", m.mix},
        {"head", m.head}, {"batch", m.batch}, {"seed", report.seed}, {"audio_s", m.audio_seconds}};
    json["result"] = {
        {"as_per_s", to_json(throughput(m))}, {"step_ms", to_json(scaled(m.step, 1e3))},
        {"cpu_ms", m.cpu_seconds * 1e3},      {"unaccounted_us", m.unaccounted * 1e6},
        {"flop", total_flops(report)},        {"planned_bytes", m.planned_bytes},
        {"mem_bytes", m.taken_bytes},         {"profiled_ms", m.profiled_step * 1e3}};
    if (report.bytes) {
      const LayerBytes units = layer_bytes(m, report.kernels);
      json["result"]["layer_bytes"] = {{"forward", units.forward}, {"backward", units.backward}};
    }
  }
  return json.dump(1) + "\n";
}

}  // namespace sft
