#include "train/record.h"

#include <omp.h>
#include <sys/utsname.h>

#include <fstream>
#include <nlohmann/json.hpp>

#include "build_info.h"
#include "engine/check.h"
#include "engine/cpu/isa.h"
#include "engine/io/file.h"
#include "engine/io/hash.h"

namespace sft {
namespace {

using Json = nlohmann::json;

std::string cpu_name() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown";
}

std::string machine_name() {
  utsname names{};
  uname(&names);
  return std::string(names.sysname) + " " + names.release + " " + names.machine;
}

}  // namespace

std::string record_json(const std::vector<std::string>& command_line, const std::string& model,
                        const std::string& base_id, const RunConfig& config) {
  return Json{{"command_line", command_line},
              {"version", SFT_VERSION},
              {"compiler", __VERSION__},
              {"machine",
               {{"system", machine_name()},
                {"cpu", cpu_name()},
                {"isa", cpu::isa()},
                {"threads", omp_get_max_threads()}}},
              {"seed", config.run.seed},
              {"math", config.run.math},
              {"base", {{"path", model}, {"id", base_id}}},
              {"manifest",
               {{"path", config.data.manifest}, {"xxh3", xxh3_of_file(config.data.manifest)}}}}
             .dump(1, ' ', false, Json::error_handler_t::replace) +
         "\n";
}

void check_resumable(const std::string& folder, const RunConfig& config,
                     const std::string& base_id) {
  RunConfig before = run_config_from_toml(folder + "/run.toml");
  const std::string old_toml = to_toml(before), new_toml = to_toml(config);
  if (old_toml != new_toml)
    fail(Kind::usage, Hint{"--resume goes on with what run.toml says: leave out what differs"},
         "{}: the run was begun with another configuration: {}", folder,
         first_difference(before, config));
  const Json record = Json::parse(read_text(folder + "/record.json"), nullptr, false);
  const auto text = [&](const char* group, const char* key) {
    return record.is_object() && record.contains(group) && record[group].contains(key)
               ? record[group][key].dump()
               : "";
  };
  if (text("base", "id") != Json(base_id).dump())
    fail(Kind::usage, "{}: the run was begun with another model (id {}, now {})", folder,
         text("base", "id"), base_id);
  const std::string hash = xxh3_of_file(config.data.manifest);
  if (text("manifest", "xxh3") != Json(hash).dump())
    fail(Kind::usage, "{}: the manifest {} has changed since the run began", folder,
         config.data.manifest);
}

}  // namespace sft
