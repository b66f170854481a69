// sft-info: what a model file is (docs/sft-info.md).
#include <nlohmann/json.hpp>

#include "models/checkpoint.h"
#include "models/file_sums.h"
#include "models/statistics.h"
#include "tools/cli.h"

using namespace sft;

namespace {

using Json = nlohmann::json;

Json to_json(const NamedStatistics& n) {
  const auto dims = n.shape.dims();
  const TensorStatistics& s = n.values;
  return {{"name", n.name},
          {"shape", std::vector<int64_t>(dims.begin(), dims.end())},
          {"dtype", name(n.dtype)},
          {"min", s.min},
          {"max", s.max},
          {"mean", s.mean},
          {"std", s.deviation},
          {"zeros", s.zeros},
          {"not_finite", s.not_finite}};
}

struct Report {
  bool with_tensors = false, check = false;
  std::vector<NamedStatistics> tensors;  // read if either is asked for
  std::vector<Suspicion> suspicions;     // of the check
};

void print_json(const ModelFile& model, const std::string& id, const Report& report) {
  Json config = Json::object();
  const Metadata metadata = metadata_from_config(model.config);
  for (const auto& [key, value] : metadata.entries())
    config[key] = Json::parse(value_to_json(value));
  Json json = {{"path", model.path},
               {"format", model.format},
               {"id", id},
               {"parameters", parameter_count(model.tensors)},
               {"tensors", model.tensors.tensors.size()},
               {"remarks", model.remarks},
               {"config", config}};
  for (const auto& [file, sum] : file_sums(model.files)) json["sha256"][file] = sum;
  if (report.with_tensors) {
    json["table"] = Json::array();
    for (const NamedStatistics& n : report.tensors) json["table"].push_back(to_json(n));
  }
  if (report.check) {
    json["suspicious"] = Json::array();
    for (const Suspicion& s : report.suspicions)
      json["suspicious"].push_back({{"tensor", s.tensor}, {"why", s.why}});
  }
  fmt::print("{}\n", json.dump(-1, ' ', false, Json::error_handler_t::replace));
}

void print_tables(const Report& report) {
  if (report.with_tensors)
    fmt::print("\nname\tshape\tdtype\tmin\tmax\tmean\tstd\tzeros\tnot finite\n");
  for (const NamedStatistics& n : report.tensors) {
    const TensorStatistics& s = n.values;
    if (report.with_tensors)
      fmt::print("{}\t{}\t{}\t{:.4g}\t{:.4g}\t{:.4g}\t{:.4g}\t{}\t{}\n", printable(n.name), n.shape,
                 n.dtype, s.min, s.max, s.mean, s.deviation, s.zeros, s.not_finite);
  }
  if (!report.suspicions.empty()) fmt::print("\nsuspicious\twhy\n");
  for (const Suspicion& s : report.suspicions) fmt::print("{}\t{}\n", printable(s.tensor), s.why);
}

void print_text(const ModelFile& model, const std::string& id) {
  fmt::print("{}: {}\n", printable(model.path), model.format);
  fmt::print("{}\n", loaded_text(model, id));
  for (const auto& [file, sum] : file_sums(model.files))
    fmt::print("{}: sha256 {}\n", printable(file), sum);
  for (const std::string& remark : model.remarks) fmt::print("remark: {}\n", remark);
  fmt::print("\n");
  const Metadata metadata = metadata_from_config(model.config);
  for (const auto& [key, value] : metadata.entries())
    fmt::print("{}\t{}\n", printable(key), printable(text(value)));
}

void fail_if_suspicious(const ModelFile& model, const Report& report) {
  int64_t values = 0, bad = 0;
  std::string first;
  for (const NamedStatistics& n : report.tensors) {
    if (n.values.not_finite == 0) continue;
    if (first.empty()) first = n.name;
    ++bad, values += n.values.not_finite;
  }
  if (bad)
    fail(Kind::check, "{}: {} values in {} tensors are not finite, first in {}",
         printable(model.path), values, bad, printable(first));
  if (!report.suspicions.empty())
    fail(Kind::check, "{}: {} tensors look untrained, first {}: {}", printable(model.path),
         report.suspicions.size(), report.suspicions[0].tensor, report.suspicions[0].why);
}

}  // namespace

int main(int argc, char** argv) {
  return run_tool(argc, argv, "sft-info", [](Cli& cli) {
    std::string path;
    Report report;
    cli.about("What a model file is: its configuration, size, id, and where it comes from.");
    cli.argument("MODEL", path,
                 "GGUF, safetensors, a Hugging Face folder, a PyTorch file, or a run");
    cli.flag("--tensors", report.with_tensors, "every tensor: shape, type, statistics");
    cli.flag("--check", report.check,
             "exit code 6 if a value is not finite, or a tensor looks untrained");
    cli.parse();

    const ModelFile model = open_model(path, Part::any);
    const std::string id = is_head_alone(model.config) ? "" : model_id(model.tensors);
    if (report.with_tensors || report.check) report.tensors = statistics(model);
    if (report.check) report.suspicions = suspicions(report.tensors);
    if (cli.json()) {
      print_json(model, id, report);
    } else {
      print_text(model, id);
      print_tables(report);
    }
    if (report.check) fail_if_suspicious(model, report);
  });
}
