#include "bench/compare.h"

#include <fmt/format.h>

#include <map>
#include <nlohmann/json.hpp>

#include "engine/check.h"
#include "engine/io/file.h"

namespace sft {
namespace {

using Json = nlohmann::json;

struct Side {
  std::string command, workload, math, cpu;
  int threads = 0;
  std::vector<std::pair<std::string, double>> rows;  // name, median seconds
};

std::string what(const Side& side) {
  return printable(fmt::format("{}{}{} in {}", side.command, side.workload.empty() ? "" : " ",
                               side.workload, side.math));
}

Side read_side(const std::string& path) {
  try {
    const Json json = Json::parse(read_text(path));
    if (json.at("schema") != 1)
      fail(Kind::input, "{}: unknown schema (expected 1)", printable(path));
    Side side{.command = json.at("command"),
              .workload = json.contains("workload") ? json["workload"].at("id") : Json(""),
              .math = json.contains("numerics") ? json["numerics"].at("class") : Json("exact"),
              .cpu = json.at("host").at("cpu"),
              .threads = json.at("host").at("threads")};
    if (json.contains("device"))
      side.cpu = fmt::format("{} ({}), {}", json["device"].at("name").get<std::string>(),
                             json.at("numerics").at("class").get<std::string>(), side.cpu);
    if (json.contains("result"))
      side.rows.emplace_back("step", json["result"].at("step_ms").at("median").get<double>() / 1e3);
    for (const Json& kernel : json.at("kernels"))
      side.rows.emplace_back(kernel.at("name"), kernel.at("us").get<double>() / 1e6);
    return side;
  } catch (const Json::exception& e) {
    fail(Kind::input, "{}: no report of sft-bench --json ({})", printable(path),
         printable(e.what()));
  }
}

}  // namespace

Comparison compare_reports(const std::string& before, const std::string& after) {
  const Side a = read_side(before), b = read_side(after);
  if (a.command != b.command || a.workload != b.workload || a.math != b.math)
    fail(Kind::usage, "{} is of {}, {} of {}", printable(before), what(a), printable(after),
         what(b));
  Comparison out;
  if (a.cpu != b.cpu || a.threads != b.threads)
    out.remarks.push_back(fmt::format("not the same machine: {}, {} threads; {}, {} threads",
                                      printable(a.cpu), a.threads, printable(b.cpu), b.threads));
  const std::map<std::string, double> now(b.rows.begin(), b.rows.end());
  for (const auto& [name, seconds] : a.rows) {
    const auto found = now.find(name);
    if (found == now.end())
      out.only_before.push_back(name);
    else
      out.rows.push_back({name, seconds, found->second});
  }
  return out;
}

}  // namespace sft
