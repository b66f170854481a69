#include "tools/training.h"

#include <filesystem>
#include <nlohmann/json.hpp>

#include "engine/cpu/isa.h"

namespace sft {
namespace {

void print_report(const Cli& cli, const TrainJob& job, const TrainerReport& report) {
  const std::string& score = job.config.eval.select;
  if (cli.json())
    fmt::print("{}\n", nlohmann::json{{"run", job.run},
                                      {"step", report.step},
                                      {"best_step", report.best_step},
                                      {score, report.best},
                                      {"skipped", report.skipped},
                                      {"planned_bytes", report.planned_bytes},
                                      {"peak_bytes", report.peak_bytes}}
                           .dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  else
    fmt::print("{}\tstep {}\tbest {} at step {}: {:.4f}\tskipped {}\n", job.run, report.step, score,
               report.best_step, report.best, report.skipped);
}

}  // namespace

void TrainingOptions::add_to(Cli& cli, const std::string& task) {
  cli.argument("MODEL", model, "GGUF file, Hugging Face folder, safetensors file, or run");
  cli.option("-o,--output", output, fmt::format("the run's folder (default: runs/MODEL-{})", task));
  cli.option("--steps", steps, "updates (train.steps)");
  device.add_to(cli);
  cli.option("--disk-cache", disk_cache,
             "GiB of frames kept in the run's folder while it lasts, where memory does not hold\n"
             "them; 0: none (default: up to a quarter of what is free)");
  cli.option("--config", config, "TOML file of keys");
  cli.option("--set", settings, "KEY=VALUE, over the file");
  cli.flag("--resume", resume, "go on with a run that was stopped");
  cli.flag("--dry-run", dry_run, "check everything, write nothing");
  cli.flag("--force", force, "begin anew where a run is already");
  cli.flag("--print-config", print_config, "print every key, its value and where it is from");
}

std::string TrainingOptions::run(const std::string& task) const {
  namespace fs = std::filesystem;
  if (!output.empty()) return output;
  fs::path path = fs::path(model).lexically_normal();
  if (!path.has_filename()) path = path.parent_path();
  return "runs/" + path.stem().string() + "-" + task;
}

void TrainingOptions::apply(const Cli& cli, ConfigBuilder& builder, const std::string& task) const {
  if (resume) {
    const std::string begun = run(task) + "/run.toml";
    if (!std::filesystem::exists(begun))
      fail(Kind::input, Hint{"without --resume a run begins"},
           "{}: is not there, so there is no run to go on with", begun);
    builder.file(begun);
  }
  if (!config.empty()) builder.file(config);
  for (const std::string& setting : settings) builder.set(setting);
  device.apply(cli, builder);
  if (steps) builder.set("train.steps", std::to_string(steps), "--steps");
  if (cli.given("--seed")) builder.set("run.seed", std::to_string(cli.seed()), "--seed");
  builder.set("run.threads", std::to_string(cli.threads()), "--threads");
}

void run_training(Cli& cli, const TrainingOptions& options, const ConfigBuilder& builder,
                  const std::string& task,
                  const std::function<TrainerReport(const TrainJob&)>& train) {
  if (cli.given("--disk-cache") && !(options.disk_cache >= 0 && options.disk_cache <= 1e6))
    fail(Kind::usage, "--disk-cache: {} (expected 0 to 1000000 GiB)", options.disk_cache);
  if (options.print_config) {
    fmt::print("{}", builder.print());
    return;
  }
  cpu::choose_isa();
  install_stop_signals();
  TrainJob job{
      .model = options.model,
      .config = builder.finish(),
      .run = options.run(task),
      .resume = options.resume,
      .force = options.force,
      .dry_run = options.dry_run,
      .disk = options.disk_cache < 0 ? -1 : static_cast<int64_t>(options.disk_cache * (1 << 30)),
      .command_line = cli.command_line()};
  Progress line(cli);
  std::string phase;
  const auto enter = [&](const std::string& name, const char* unit) {
    if (name != phase) line.phase(phase = name, unit);
  };
  job.say = [&](const std::string& text) { cli.say("{}", text); };
  job.reading = [&](const char* what, int64_t done, int64_t total) {
    enter(what, "utt");
    line.update(static_cast<double>(done), static_cast<double>(total));
  };
  job.progress = [&](int64_t step, double, const std::string& fields) {
    enter("train", "step");
    line.update(static_cast<double>(step), static_cast<double>(job.config.train.steps), fields);
  };
  const TrainerReport report = train(job);
  line.finish();
  if (!options.dry_run) print_report(cli, job, report);
}

}  // namespace sft
