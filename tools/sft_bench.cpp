// sft-bench: ceilings of this machine, ops, models, and comparing two reports (docs/sft-bench.md).
#include <charconv>

#include "bench/ceilings.h"
#include "bench/compare.h"
#include "bench/files.h"
#include "bench/model.h"
#include "bench/numerics.h"
#include "bench/ops.h"
#include "bench/page.h"
#include "bench/peers.h"
#include "bench/random_weights.h"
#include "engine/audio/decode.h"
#include "engine/cpu/isa.h"
#include "engine/cpu/narrow.h"
#include "engine/device.h"
#include "engine/io/file.h"
#include "engine/ops/lstm_library.h"
#include "models/checkpoint.h"
#include "models/extract.h"
#include "tools/device_options.h"
#include "train/corpus.h"

using namespace sft;

namespace {

// What becomes of a report: --peers, --html, and standard output.
struct Output {
  std::optional<std::string> html, peers;
  bool force = false;
  std::vector<PeerRow> rows;

  void options(Cli& cli) {
    cli.option("--html", html, "also write the report as a page to look at");
    cli.flag("--force", force, "replace that page");
  }
  void peer_option(Cli& cli) {
    cli.option("--peers", peers, "compare with these: a file of bench/baseline/run.py");
  }
  // Before anything is measured.
  void check() {
    if (html) check_destination(*html, existing());
    if (peers) rows = read_peers(*peers);
  }
  void write(const Cli& cli, Report& report) const {
    if (peers)
      for (const std::string& remark : add_peers(report, rows)) cli.say("{}", remark);
    if (html) write_text(*html, report_html(report), existing());
    fmt::print("{}", cli.json() ? report_json(report) : report_text(report));
    if (report.numerics && !report.numerics->pass())
      fail(Kind::check, "the numbers are wrong: nothing that was timed counts");
  }

 private:
  Existing existing() const { return force ? Existing::replace : Existing::refuse; }
};

// The device that the options name.
struct On {
  DeviceOptions options;
  std::unique_ptr<cuda::Runtime> gpu;

  // After parse(), before anything is measured.
  void open(const Cli& cli) {
    cpu::choose_isa();
    options.settle(cli);
    gpu = open_device(options.device, options.chosen());
  }
};

Report started(const Cli& cli, const std::string& command, const On& on) {
  Report report{.command = command,
                .seed = cli.seed(),
                .ceilings = measure_ceilings(on.gpu ? Math::exact : on.options.chosen())};
  if (on.gpu) report.ceilings.device = measure_device(*on.gpu, on.options.chosen());
  return report;
}

// What is probed while others are timed: the CPU's rates, where it computes.
std::function<void()> between(const On& on, MomentProbe& probe) {
  if (on.gpu) return [] {};
  return [&probe] { probe(); };
}

void check_repeats(int repeats) {
  if (repeats < 1) fail(Kind::usage, "--repeats {}: expected at least 1", repeats);
}

void ceilings(Cli& cli) {
  On on;
  Output output;
  on.options.add_to(cli), output.options(cli);
  cli.parse();
  output.check();
  on.open(cli);
  Report report = started(cli, "ceilings", on);
  output.write(cli, report);
}

// Of an op whose check failed.
bool invalid(const Report& report, const KernelRow& row) {
  const std::vector<std::string>& wrong = report.numerics->wrong;
  return std::any_of(wrong.begin(), wrong.end(), [&](const std::string& line) {
    return row.name.starts_with(line.substr(0, line.find(':')) + "[");
  });
}

// Every op against its oracle, before it is timed.
void check_numbers(const Cli& cli, const OpsOptions& options, Report& report) {
  Progress progress(cli);
  progress.phase("check", "ops");
  Numerics& all = report.numerics.emplace();
  all.tolerance = 1;
  const std::vector<OpNumerics> checks = check_ops(options);
  all.against =
      fmt::format("{} ops, worst output in units of its tolerance against float64", checks.size());
  for (const OpNumerics& check : checks) {
    all.error = std::max(all.error, check.numerics.error);
    for (const std::string& wrong : check.numerics.wrong)
      all.wrong.push_back(fmt::format("{}: {}", check.op, wrong));
  }
}

void say_lstms(Cli& cli, const On& on) {
  if (!on.gpu) return;
  for (const std::string& line : cuda::lstm_lines(*on.gpu)) cli.say("{}", line);
}

void ops(Cli& cli) {
  OpsOptions options;
  cli.option("--op", options.op, "only ops whose name begins so");
  cli.option("--shape", options.shape,
             "frames and sizes in place of an op's own: 4x250:768,3072; needs --op");
  cli.option("--repeats", options.repeats, "timed repetitions of each case");
  On on;
  Output output;
  on.options.add_to(cli), output.options(cli), output.peer_option(cli);
  cli.parse();
  check_repeats(options.repeats);
  if (!options.shape.empty() && options.op.empty())
    fail(Kind::usage, Hint{"--op linear"}, "--shape: of which op?");
  output.check();
  on.open(cli);
  options.seed = cli.seed();
  options.where = {on.gpu ? Device::cuda : Device::cpu, on.options.chosen()};
  if (on.gpu && cudnn_yardstick) options.yardstick = cudnn_yardstick;
  options.say = [&](const std::string& line) { cli.say("{}", line); };
  Report report = started(cli, "ops", on);
  check_numbers(cli, options, report);
  MomentProbe probe(report.ceilings);
  options.between = between(on, probe);
  Progress progress(cli);
  progress.phase("ops", "cases");
  report.kernels = bench_ops(options, [&](int64_t done, int64_t total) {
    progress.update(static_cast<double>(done), static_cast<double>(total));
  });
  progress.finish();
  say_lstms(cli, on);
  probe.settle();
  std::erase_if(report.kernels, [&](const KernelRow& row) { return invalid(report, row); });
  output.write(cli, report);
}

// A preset's configuration, or a model file's; the weights are random either way.
Config config_of(const std::string& model) {
  for (const std::string& name : preset_names())
    if (name == model) return preset(model);
  return open_model(model).config;
}

// What only some tasks have is refused where another one would leave it unread.
void check_options(const Cli& cli, const std::string& task) {
  const bool merges = task == "merge";
  const std::vector<std::string> others =
      merges ? std::vector<std::string>{"--mix",   "--batch",    "--batch-as", "--head",
                                        "--bytes", "--launches", "--device",   "--math"}
             : std::vector<std::string>{"--folder"};
  for (const std::string& option : others)
    if (cli.given(option))
      fail(Kind::usage, "{}: {}", option,
           merges ? "--task merge has no such option: two files, f32, on the CPU"
                  : "is of --task merge");
}

void model(Cli& cli) {
  Workload workload;
  std::string folder = ".";
  bool bytes = false;
  cli.argument("MODEL", workload.arch, "a preset such as hubert-base, or a model");
  cli.option("--task", workload.task,
             "what a step does: extract, train-head, train-full, merge, or probe:TASK (a task of\n"
             "sft-probe, whose states are kept)");
  cli.option("--mix", workload.mix,
             "lengths of the audio: fixed:SECONDS, mixed, ls-train, ted3, ls-test, kw, or\n"
             "official:MIX, a group of the fine-tuning recipe");
  cli.option("--batch", workload.batch, "utterances a step; 0: as the mix has them");
  cli.option("--batch-as", workload.batch_seconds, "in its place: about so many seconds of audio");
  cli.option("--head", workload.head,
             "blstm or linear; with +cached, frozen convolutions are kept");
  cli.option("--repeats", workload.repeats, "timed steps");
  cli.option("--folder", folder, "of merge: where its files lie for a while");
  cli.flag("--bytes", bytes, "also what a layer's ops move, against a budget");
  cli.flag("--launches", workload.launches, "on a device: also the share of each kernel in a step");
  On on;
  Output output;
  on.options.add_to(cli), output.options(cli), output.peer_option(cli);
  cli.parse();
  check_repeats(workload.repeats);
  check_options(cli, workload.task);
  workload.seed = cli.seed();
  const bool merges = workload.task == "merge";
  if (!merges) workload = complete(workload);
  const Config config = config_of(workload.arch);
  output.check();
  on.open(cli);
  if (workload.launches && !on.gpu)
    fail(Kind::usage, Hint{"add --device cuda"}, "--launches: there are none on the CPU");
  workload.gpu = on.gpu.get(), workload.math = on.options.chosen();
  Report report = started(cli, "model", on);
  if (merges) {
    report.kernels = {bench_merge(config, folder, workload.arch, workload.repeats, workload.seed)};
    return output.write(cli, report);
  }
  report.bytes = bytes;
  MomentProbe probe(report.ceilings);
  workload.between = between(on, probe);
  Progress progress(cli);
  progress.phase(workload.task, "steps");
  ModelBenchResult done = bench_model(config, workload, [&](int64_t step, int64_t steps) {
    progress.update(static_cast<double>(step), static_cast<double>(steps));
  });
  progress.finish();
  say_lstms(cli, on);
  probe.settle();
  if (!on.gpu) report.numerics = check_model(config, workload.math, workload.seed);
  report.kernels = std::move(done.kernels);
  report.model = std::move(done.result);
  report.phases = std::move(done.phases);
  report.launches = std::move(done.launches);
  if (report.numerics && !report.numerics->pass()) report.kernels.clear(), report.model.reset();
  output.write(cli, report);
}

void decoding(Cli& cli) {
  std::string manifest;
  int repeats = 5;
  cli.argument("MANIFEST", manifest, "a manifest, or the name of a corpus");
  cli.option("--repeats", repeats, "timed passes");
  Output output;
  output.options(cli);
  cli.parse();
  check_repeats(repeats);
  output.check();
  cpu::choose_isa();
  Report report = started(cli, "io", {});
  report.io = bench_io(read_manifest(find_corpus(manifest)), repeats);
  output.write(cli, report);
}

// Random weights of a preset, or a model file's own.
ModelFile weights_of(const std::string& model, uint64_t seed) {
  for (const std::string& name : preset_names()) {
    if (name != model) continue;
    ModelFile made;
    made.path = model, made.config = preset(model);
    RandomWeights(seed).add(made.tensors, backbone_tensors(made.config));
    return made;
  }
  return open_model(model);
}

// What can be compared with f32 products here.
std::vector<Math> maths_of(bool exact) {
  std::vector<Math> maths;
  if (exact) maths.push_back(Math::exact);
  for (Math math : {Math::fast16, Math::bf16})
    if (cpu::narrow::available(math)) maths.push_back(math);
  if (maths.empty())
    fail(Kind::resource, Hint{"--exact compares f32 products of two instruction sets"},
         "numerics: products of 16-bit numbers need AVX-512 with VNNI and BF16, which {} has not",
         cpu::isa());
  return maths;
}

std::vector<std::vector<float>> waves_of(const std::vector<std::string>& audio,
                                         const Config& config) {
  std::vector<std::vector<float>> waves;
  for (const std::string& path : audio) {
    waves.push_back(load_audio(path));
    if (std::ssize(waves.back()) < config.min_samples())
      fail(Kind::input, "{}: {} samples at 16 kHz (expected at least {})", printable(path),
           waves.back().size(), config.min_samples());
  }
  return waves;
}

void numerics(Cli& cli) {
  std::string model;
  std::vector<std::string> audio;
  std::string states = "all";
  bool exact = false;
  cli.argument("MODEL", model, "a preset, with random weights, or a model");
  cli.argument("AUDIO", audio, "audio files");
  cli.option("--states", states, "all, last, or numbers: 0,6,12");
  cli.flag("--exact", exact, "f32 products too, against those of another instruction set; slow");
  cli.parse();
  cpu::choose_isa();
  const std::vector<Math> maths = maths_of(exact);
  const ModelFile file = weights_of(model, cli.seed());
  const std::vector<int> wanted = parse_states(states, file.config);
  const std::vector<std::vector<float>> waves = waves_of(audio, file.config);
  const std::vector<std::span<const float>> views(waves.begin(), waves.end());
  const auto errors = state_errors(file, wanted, views, maths);
  if (cli.json()) {
    fmt::print("{}", state_errors_json(model, wanted, maths, errors));
    return;
  }
  for (size_t m = 0; m < maths.size(); ++m)
    for (size_t i = 0; i < wanted.size(); ++i)
      fmt::print("{}\t{}\t{}\t{:.3g}\n", printable(model), name(maths[m]), wanted[i], errors[m][i]);
}

// "5%", "5" -> 0.05
double share(const std::string& text) {
  double percent = -1;
  const char* end = text.data() + text.size() - (text.ends_with('%') ? 1 : 0);
  const auto [stop, error] = std::from_chars(text.data(), end, percent);
  if (error != std::errc() || stop != end || !(percent >= 0))
    fail(Kind::usage, "--fail-over {}: expected a percentage such as 5%", printable(text));
  return percent / 100;
}

void compare(Cli& cli) {
  std::string before, after;
  std::optional<std::string> fail_over;
  cli.argument("A.json", before, "report of before");
  cli.argument("B.json", after, "report of after");
  cli.option("--fail-over", fail_over, "exit with 6 if the step, or an op, is slower by more: 5%");
  cli.parse();
  const double allowed = fail_over ? share(*fail_over) : 0;
  const Comparison found = compare_reports(before, after);
  for (const std::string& remark : found.remarks) cli.say("{}", remark);
  std::vector<std::string> failed = found.only_before;
  const bool steps = !found.rows.empty() && found.rows[0].name == "step";
  for (const ComparedRow& row : found.rows) {
    fmt::print("{}\t{:.1f}\t{:.1f}\t{:+.1f} %\n", row.name, row.before * 1e6, row.after * 1e6,
               100 * row.slower());
    if (row.slower() > allowed && (!steps || row.name == "step")) failed.push_back(row.name);
  }
  for (const std::string& name : found.only_before) fmt::print("{}\tgone\n", name);
  if (fail_over && !failed.empty())
    fail(Kind::check, "{}: slower by more than {} than {}: {}", printable(after),
         printable(*fail_over), printable(before), fmt::join(failed, ", "));
}

// No command: ceilings, then every op.
bool bare(int argc, char** argv) {
  const std::string_view first = argc > 1 ? argv[1] : "";
  return argc == 1 ||
         (first.starts_with("-") && first != "-h" && first != "--help" && first != "--version");
}

}  // namespace

int main(int argc, char** argv) {
  return run_tool(argc, argv, "sft-bench", [&](Cli& cli) {
    if (bare(argc, argv)) return ops(cli);
    const std::string command = cli.command(
        {{"ceilings", "Peak arithmetic and memory bandwidth of this machine, measured now."},
         {"ops", "Every op, forward and backward, against these ceilings."},
         {"model", "Extraction or a training step of a whole model with random weights."},
         {"io", "Decoding of a manifest's audio."},
         {"numerics",
          "How far 16-bit products take a model's states from f32 ones, on real audio."},
         {"compare", "Two reports made with --json."}});
    if (command == "ceilings") return ceilings(cli);
    if (command == "ops") return ops(cli);
    if (command == "model") return model(cli);
    if (command == "io") return decoding(cli);
    if (command == "numerics") return numerics(cli);
    compare(cli);
  });
}
