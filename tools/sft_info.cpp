// sft-info: what a model file is (docs/sft-info.md).
#include <cmath>
#include <nlohmann/json.hpp>

#include "engine/formats/numbers.h"
#include "engine/io/hash.h"
#include "models/checkpoint.h"
#include "tools/cli.h"

using namespace sft;

namespace {

using Json = nlohmann::json;

struct Statistics {
  float min = INFINITY, max = -INFINITY;  // of the finite values
  double mean = 0, rms = 0;
  int64_t not_finite = 0;
};

Statistics statistics(const Tensor& tensor) {
  constexpr int64_t kChunk = 1 << 14;  // elements; whole blocks of q8_0
  Statistics s;
  double sum = 0, squares = 0;
  std::vector<float> values(static_cast<size_t>(std::min(kChunk, tensor.count())));
  for (int64_t first = 0; first < tensor.count(); first += kChunk) {
    const int64_t n = std::min(kChunk, tensor.count() - first);
    to_f32(tensor.dtype, static_cast<const std::byte*>(tensor.data) + bytes_of(tensor.dtype, first),
           values.data(), n);
    for (int64_t i = 0; i < n; ++i) {
      const float x = values[i];
      if (!std::isfinite(x)) {
        ++s.not_finite;
        continue;
      }
      s.min = std::min(s.min, x), s.max = std::max(s.max, x);
      sum += x, squares += static_cast<double>(x) * x;
    }
  }
  const auto finite = static_cast<double>(std::max<int64_t>(1, tensor.count() - s.not_finite));
  s.mean = sum / finite;
  s.rms = std::sqrt(squares / finite);
  return s;
}

struct Named {
  std::string name;
  Tensor tensor;
  Statistics statistics;  // filled by --check
};

std::vector<Named> list(const ModelFile& model, bool check) {
  std::vector<Named> all;
  for (const auto& [name, tensor] : model.tensors.tensors)
    all.push_back({name, tensor, check ? statistics(tensor) : Statistics{}});
  return all;
}

Json to_json(const Named& n, bool check) {
  const auto dims = n.tensor.shape.dims();
  Json json = {{"name", n.name},
               {"shape", std::vector<int64_t>(dims.begin(), dims.end())},
               {"dtype", name(n.tensor.dtype)}};
  if (check) {
    const Statistics& s = n.statistics;
    json.update({{"min", s.min},
                 {"max", s.max},
                 {"mean", s.mean},
                 {"rms", s.rms},
                 {"not_finite", s.not_finite}});
  }
  return json;
}

void print_json(const ModelFile& model, const std::string& id, const std::vector<Named>& tensors,
                bool with_tensors, bool check) {
  Json config = Json::object(), table = Json::array();
  const Metadata metadata = metadata_from_config(model.config);
  for (const auto& [key, value] : metadata.entries())
    config[key] = Json::parse(value_to_json(value));
  Json report = {{"path", model.path},
                 {"format", model.format},
                 {"id", id},
                 {"parameters", parameter_count(model.tensors)},
                 {"tensors", model.tensors.tensors.size()},
                 {"remarks", model.remarks},
                 {"config", config}};
  for (const std::string& file : model.files) report["sha256"][file] = sha256_of_file(file);
  for (const Named& n : tensors)
    if (with_tensors) table.push_back(to_json(n, check));
  if (with_tensors) report["table"] = table;
  fmt::print("{}\n", report.dump(-1, ' ', false, Json::error_handler_t::replace));
}

void print_table(const std::vector<Named>& tensors, bool check) {
  fmt::print("\nname\tshape\tdtype{}\n", check ? "\tmin\tmax\tmean\trms\tnot finite" : "");
  for (const Named& n : tensors) {
    fmt::print("{}\t{}\t{}", printable(n.name), n.tensor.shape, n.tensor.dtype);
    const Statistics& s = n.statistics;
    if (check)
      fmt::print("\t{:.4g}\t{:.4g}\t{:.4g}\t{:.4g}\t{}", s.min, s.max, s.mean, s.rms, s.not_finite);
    fmt::print("\n");
  }
}

void print_text(const ModelFile& model, const std::string& id) {
  fmt::print("{}: {}\n", printable(model.path), model.format);
  fmt::print("{}\n", loaded_text(model, id));
  for (const std::string& file : model.files)
    fmt::print("{}: sha256 {}\n", printable(file), sha256_of_file(file));
  for (const std::string& remark : model.remarks) fmt::print("remark: {}\n", remark);
  fmt::print("\n");
  const Metadata metadata = metadata_from_config(model.config);
  for (const auto& [key, value] : metadata.entries())
    fmt::print("{}\t{}\n", printable(key), printable(text(value)));
}

void fail_if_not_finite(const ModelFile& model, const std::vector<Named>& tensors) {
  int64_t values = 0, bad = 0;
  std::string first;
  for (const Named& n : tensors) {
    if (n.statistics.not_finite == 0) continue;
    if (first.empty()) first = n.name;
    ++bad, values += n.statistics.not_finite;
  }
  if (bad)
    fail(Kind::check, "{}: {} values in {} tensors are not finite, first in {}",
         printable(model.path), values, bad, printable(first));
}

}  // namespace

int main(int argc, char** argv) {
  return run_tool(argc, argv, "sft-info", [](Cli& cli) {
    std::string path;
    bool with_tensors = false, check = false;
    cli.about("What a model file is: its configuration, size, id, and where it comes from.");
    cli.argument("MODEL", path,
                 "GGUF, safetensors, a Hugging Face folder, a PyTorch file, or a run");
    cli.flag("--tensors", with_tensors, "names, shapes and types too; with --check, statistics");
    cli.flag("--check", check, "read every value; exit code 6 if one is not finite");
    cli.parse();

    const ModelFile model = open_model(path);
    const std::string id = model_id(model.tensors);
    const std::vector<Named> tensors = list(model, check);
    if (cli.json()) {
      print_json(model, id, tensors, with_tensors, check);
    } else {
      print_text(model, id);
      if (with_tensors) print_table(tensors, check);
    }
    if (check) fail_if_not_finite(model, tensors);
  });
}
