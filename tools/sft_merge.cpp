// sft-merge: a base interpolated with models tuned from it (docs/sft-merge.md).
#include <nlohmann/json.hpp>

#include "merge/alphas.h"
#include "merge/interpolate.h"
#include "tools/cli.h"

using namespace sft;

namespace {

MergeJob::TensorAlpha tensor_alpha(const std::string& text) {
  const size_t equals = text.rfind('=');
  if (equals == std::string::npos || equals == 0)
    fail(Kind::usage, Hint{"as in --tensors 'enc.*.attn.*=0.5'"},
         "--tensors: '{}' (expected "
         "GLOB=ALPHA)",
         printable(text));
  MergeJob::TensorAlpha t{text.substr(0, equals), 0};
  parse_value("--tensors", text.substr(equals + 1), t.alpha);
  return t;
}

nlohmann::json to_json(const MergeReport& report, const std::vector<MergeJob::Output>& outputs) {
  nlohmann::json json = {{"method", "linear"}, {"base", report.base_id}};
  for (const MergeReport::Input& input : report.tuned)
    json["tuned"].push_back({{"name", input.name}, {"id", input.id}});
  for (size_t k = 0; k < outputs.size(); ++k)
    json["outputs"].push_back(
        {{"alpha", outputs[k].alpha}, {"path", outputs[k].path}, {"ratio", report.ratio[k]}});
  for (const MergeReport::Part& part : report.parts)
    json["parts"].push_back({{"name", part.name},
                             {"base", part.base},
                             {"difference", part.difference},
                             {"change", part.change}});
  json["remarks"] = report.remarks;
  return json;
}

void print_text(const MergeReport& report, const std::vector<MergeJob::Output>& outputs) {
  fmt::print("{:<10} {:>12} {:>12}", "part", "|base|", "|difference|");
  for (const MergeJob::Output& output : outputs)
    fmt::print(" {:>12}", "a=" + alpha_text(output.alpha));
  fmt::print("\n");
  for (const MergeReport::Part& part : report.parts) {
    fmt::print("{:<10} {:>12.6g} {:>12.6g}", part.name, part.base, part.difference);
    for (double change : part.change) fmt::print(" {:>12.6g}", change);
    fmt::print("\n");
  }
  for (size_t k = 0; k < outputs.size(); ++k)
    fmt::print("{}: alpha {}, |merged - base| / |difference| = {:.7f}\n", outputs[k].path,
               outputs[k].alpha, report.ratio[k]);
}

}  // namespace

int main(int argc, char** argv) {
  return run_tool(argc, argv, "sft-merge", [](Cli& cli) {
    std::string base, alpha = "0.25", out, head;
    std::vector<std::string> tuned, tensors;
    bool allow_other_base = false, force = false;
    cli.about(
        "BASE + alpha * mean(TUNED - BASE): an encoder with what tuning taught it and the\n"
        "generality it had before. Models: GGUF, safetensors, Hugging Face folders, or runs.");
    cli.example("sft-merge hubert.gguf runs/ted --alpha 0.25 -o speechft.gguf");
    cli.argument("BASE", base, "the pre-trained model");
    cli.argument("TUNED", tuned, "models or runs tuned from it");
    cli.option("--alpha", alpha, "0.25; several, each to a file of its own: 0.1,0.25 or 0:1:0.1");
    cli.option("--tensors", tensors, "GLOB=ALPHA: another alpha for some tensors; the last counts");
    cli.option("--head-from", head, "add the task head of this model, run, or head alone");
    cli.option("-o,--output", out,
               "NAME.gguf, NAME.safetensors, or a folder (Hugging Face); several alphas give\n"
               "NAME-a0.10.gguf ...; DIR/ gives DIR/BASE-TUNED-a0.25.gguf");
    cli.flag("--allow-other-base", allow_other_base, "even if TUNED records another base");
    cli.flag("--force", force, "replace outputs that exist");
    cli.parse();

    MergeJob job;
    const std::vector<double> alphas = parse_alphas(alpha);
    for (const std::string& text : tensors) job.tensors.push_back(tensor_alpha(text));
    job.base = open_stored_model(base);
    for (const std::string& path : tuned) job.tuned.push_back(open_stored_model(path));
    if (!head.empty()) job.head = open_stored_model(head, Part::head);
    const std::vector<std::string> paths = output_paths(out, base, tuned, alphas);
    for (size_t k = 0; k < alphas.size(); ++k) job.outputs.push_back({alphas[k], paths[k]});
    job.allow_other_base = allow_other_base;
    job.existing = force ? Existing::replace : Existing::refuse;
    if (out.ends_with('/')) make_directory(out);

    const std::vector<MergeJob::Output> outputs = job.outputs;
    const MergeReport report = interpolate(std::move(job));
    for (const std::string& line : report.remarks) cli.say("{}", line);
    if (cli.json()) {
      fmt::print("{}\n", to_json(report, outputs).dump());
    } else {
      print_text(report, outputs);
    }
  });
}
