#include "bench/peers.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "engine/check.h"
#include "engine/io/file.h"

namespace sft {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kMostBytes = uint64_t{64} << 20;

PeerRow to_row(const Json& json) {
  PeerRow row{.peer = json.at("peer"),
              .version = json.value("version", ""),
              .config = json.at("config").is_string() ? json["config"] : Json(""),
              .device = json.at("device"),
              .workload = json.at("workload_id"),
              .math = json.at("class"),
              .ours = json.value("ours", "")};
  if (json.contains("as_per_s")) row.per_second = json["as_per_s"].at("median");
  std::vector<double> ratios;
  for (const Json& pair : json.value("pairs", Json::array()))
    ratios.push_back(pair.at(1).get<double>() / pair.at(0).get<double>());
  row.paired = spread_of(ratios).median;
  for (const Json& kernel : json.value("kernels", Json::array()))
    row.kernels.emplace_back(kernel.at("name"), kernel.at("us").get<double>() / 1e6);
  return row;
}

void collect(const Json& json, std::vector<PeerRow>& to) {
  if (json.is_object() && json.contains("runs")) return collect(json["runs"], to);
  if (!json.is_array()) {
    // ours is sft, or sft ARITHMETIC; of a side that failed there are no times
    const bool ours = json.at("peer").get<std::string>().starts_with("sft");
    if (!ours && !json.contains("failed")) to.push_back(to_row(json));
    return;
  }
  for (const Json& part : json) collect(part, to);
}

void add_kernels(Report& report, const PeerRow& row) {
  for (const auto& [name, seconds] : row.kernels)
    for (KernelRow& kernel : report.kernels)
      if (kernel.name == name && (kernel.peer == 0 || seconds < kernel.peer))
        kernel.peer = seconds, kernel.in_turn = false;
}

}  // namespace

std::vector<PeerRow> read_peers(const std::string& path) {
  try {
    std::vector<PeerRow> rows;
    collect(Json::parse(read_text(path, kMostBytes)), rows);
    return rows;
  } catch (const Json::exception& e) {
    fail(Kind::input, "{}: no file of peers ({})", printable(path), printable(e.what()));
  }
}

std::vector<std::string> add_peers(Report& report, const std::vector<PeerRow>& rows) {
  const std::string machine = machine_name(report);
  // peers are of two classes: exact, and 16 bits of whatever kind
  const std::string_view math = math_class(report.ceilings) == "exact" ? "exact" : "bf16";
  std::vector<std::string> elsewhere;
  for (const PeerRow& row : rows) {
    if (row.math != math || (report.model && row.workload != report.model->id)) continue;
    if (row.device.empty() || !machine.starts_with(row.device)) {
      elsewhere.push_back(row.device);
      continue;
    }
    add_kernels(report, row);
    const bool same = row.ours.empty() || row.ours == math_class(report.ceilings);
    if (report.model && row.per_second > 0)
      report.peers.push_back({fmt::format("{} ({}{}{})", row.peer, row.version,
                                          row.version.empty() ? "" : ", ", row.config),
                              row.per_second, same ? row.paired : 0});
  }
  std::stable_sort(
      report.peers.begin(), report.peers.end(),
      [](const PeerSpeed& a, const PeerSpeed& b) { return a.per_second > b.per_second; });
  std::vector<std::string> remarks;
  std::sort(elsewhere.begin(), elsewhere.end());
  elsewhere.erase(std::unique(elsewhere.begin(), elsewhere.end()), elsewhere.end());
  for (const std::string& device : elsewhere)
    remarks.push_back(
        fmt::format("peers on {} are left out: this is {}", printable(device), machine));
  const bool kernels = std::any_of(report.kernels.begin(), report.kernels.end(),
                                   [](const KernelRow& row) { return row.peer > 0; });
  if (report.peers.empty() && !kernels && elsewhere.empty())
    remarks.push_back("the file of peers has nothing of this workload and class");
  return remarks;
}

}  // namespace sft
