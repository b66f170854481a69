// sft-probe: what a frozen encoder knows (docs/sft-probe.md).
#include <nlohmann/json.hpp>

#include "engine/cpu/isa.h"
#include "engine/io/directory.h"
#include "tools/device_options.h"
#include "train/corpus.h"
#include "train/probe.h"
#include "train/record.h"

using namespace sft;

namespace {

using Json = nlohmann::json;

struct Options {
  std::string model, task, data, label, units, split_column, head, states, config, output;
  std::vector<std::string> settings;
  DeviceOptions device;
  int64_t steps = 0, batch = 0, seeds = 1;
  double lr = 0;
  bool sweep = false, force = false;

  void parse(Cli& cli) {
    cli.about(
        "Trains a small head on the hidden states of MODEL, which stays as it is, and scores it:\n"
        "pr phones, asr words, sid speakers, ks keywords, er emotions. Updates and learning rate\n"
        "are chosen on dev data; test data is scored once.");
    cli.argument("MODEL", model, "GGUF file, Hugging Face folder, safetensors file, or run");
    cli.choice("--task", task, probe_tasks(), "what to read from the hidden states");
    cli.option("--data", data, "a manifest, or the folder of a corpus (default: a built-in one)");
    cli.option("--label", label, "column of the classes (default: speaker, label or emotion)");
    cli.option("--units", units, "of pr and asr: phones, chars, or a file");
    cli.option("--split-column", split_column, "column that says train, dev or test");
    cli.option("--states", states, "all, last, or a list such as 0,6,12 (probe.states)");
    cli.option("--head", head, "of pr and asr: projector or linear (head.kind)");
    cli.option("--steps", steps, "updates (probe.steps)");
    cli.option("--batch", batch, "utterances of an update (probe.batch)");
    cli.option("--lr", lr, "learning rate (probe.lr)");
    cli.flag("--lr-sweep", sweep, "try 1e-1 to 1e-5 and take the best on dev data");
    cli.option("--seeds", seeds, "heads with seeds --seed, --seed + 1, ... (probe.seeds)");
    device.add_to(cli);
    cli.option("--config", config, "TOML file of keys");
    cli.option("--set", settings, "KEY=VALUE, over the file");
    cli.option("-o,--output", output, "folder to write: probe.json, run.toml, record.json");
    cli.flag("--force", force, "replace the folder if it is there");
    cli.parse();
    if (task.empty()) fail(Kind::usage, "missing --task (expected pr, asr, sid, ks or er)");
    if (sweep && cli.given("--lr")) fail(Kind::usage, "--lr and --lr-sweep exclude each other");
  }
};

RunConfig build_config(const Cli& cli, const Options& o) {
  ConfigBuilder builder = probe_config(o.task);
  if (!o.config.empty()) builder.file(o.config);
  for (const std::string& setting : o.settings) builder.set(setting);
  const auto flag = [&](const char* option, const char* key, const std::string& value) {
    if (cli.given(option)) builder.set(key, value, option);
  };
  flag("--label", "data.label", o.label);
  flag("--units", "data.units", o.units);
  flag("--split-column", "data.split_column", o.split_column);
  flag("--head", "head.kind", o.head);
  flag("--states", "probe.states", o.states);
  flag("--steps", "probe.steps", std::to_string(o.steps));
  flag("--batch", "probe.batch", std::to_string(o.batch));
  flag("--seeds", "probe.seeds", std::to_string(o.seeds));
  flag("--lr", "probe.lr", fmt::format("{}", o.lr));
  flag("--seed", "run.seed", std::to_string(cli.seed()));
  o.device.apply(cli, builder);
  builder.set("data.manifest", find_task_corpus(o.task, o.data), "--data");
  builder.set("run.threads", std::to_string(cli.threads()), "--threads");
  return builder.finish();
}

const ProbeTrial& chosen(const ProbeReport& r) { return r.trials[r.chosen]; }

std::vector<double> values_of(const std::vector<ProbeScore>& scores) {
  std::vector<double> values;
  for (const ProbeScore& score : scores) values.push_back(score.value);
  return values;
}

std::vector<double> dev_values(const ProbeTrial& trial) {
  std::vector<double> values;
  for (const ProbeFit& fit : trial.fits) values.push_back(fit.dev.value);
  return values;
}

std::vector<double> mean_shares(const ProbeReport& r) {
  std::vector<double> mean(r.layer_shares[0].size());
  for (const std::vector<double>& shares : r.layer_shares)
    for (size_t l = 0; l < shares.size(); ++l)
      mean[l] += shares[l] / static_cast<double>(r.layer_shares.size());
  return mean;
}

Json to_json(const MeanDeviation& m) { return {{"mean", m.mean}, {"deviation", m.deviation}}; }

Json seeds_json(const ProbeReport& r) {
  Json seeds = Json::array();
  for (size_t s = 0; s < r.tests.size(); ++s) {
    const ProbeFit& fit = chosen(r).fits[s];
    seeds.push_back({{"seed", fit.seed},
                     {"step", fit.step},
                     {"skipped", fit.skipped},
                     {"dev", fit.dev.value},
                     {"dev_loss", fit.dev.loss},
                     {"test", r.tests[s].value},
                     {"test_loss", r.tests[s].loss},
                     {"layer_shares", r.layer_shares[s]}});
  }
  return seeds;
}

Json to_json(const ProbeReport& r, const RunConfig& c, const std::string& model) {
  Json trials = Json::array();
  for (const ProbeTrial& trial : r.trials)
    trials.push_back({{"lr", trial.lr},
                      {"dev", dev_values(trial)},
                      {"dev_mean", trial.dev().value},
                      {"dev_loss", trial.dev().loss},
                      {"diverged", trial.diverged()}});
  return {{"task", r.task},
          {"metric", name(r.metric)},
          {"model", model},
          {"model_id", r.model_id},
          {"manifest", c.data.manifest},
          {"column", r.column},
          {"split_column", c.data.split_column},
          {"utterances", {{"train", r.train}, {"dev", r.dev}, {"test", r.test}}},
          {"outputs", r.outputs},
          {"states", r.states},
          {"head", c.head.kind},
          {"steps", c.probe.steps},
          {"batch", c.probe.batch},
          {"chance", r.chance ? Json(*r.chance) : Json()},
          {"lr", chosen(r).lr},
          {"seeds", seeds_json(r)},
          {"dev", to_json(mean_deviation(dev_values(chosen(r))))},
          {"test", to_json(mean_deviation(values_of(r.tests)))},
          {"layer_shares", mean_shares(r)},
          {"trials", trials},
          {"cache_bytes", r.cache_bytes},
          {"seconds", {{"encode", r.encode_seconds}, {"fit", r.fit_seconds}}}};
}

void print_mean(const char* what, const MeanDeviation& m, size_t count) {
  if (count > 1)
    fmt::print("{}\t{:.2f} ± {:.2f} %\n", what, 100 * m.mean, 100 * m.deviation);
  else
    fmt::print("{}\t{:.2f} %\n", what, 100 * m.mean);
}

void print_text(const ProbeReport& r) {
  fmt::print("lr\tseed\tstep\tdev {0} %\ttest {0} %\n", name(r.metric));
  for (size_t i = 0; i < r.trials.size(); ++i) {
    for (size_t s = 0; s < r.trials[i].fits.size(); ++s) {
      const ProbeFit& fit = r.trials[i].fits[s];
      const std::string test =
          i == r.chosen ? fmt::format("{:.2f}", 100 * r.tests[s].value) : std::string("-");
      fmt::print("{:g}\t{}\t{}\t{:.2f}\t{}\n", fit.lr, fit.seed, fit.step, 100 * fit.dev.value,
                 test);
    }
  }
  const size_t seeds = r.tests.size();
  print_mean("dev", mean_deviation(dev_values(chosen(r))), seeds);
  print_mean("test", mean_deviation(values_of(r.tests)), seeds);
  if (r.chance) fmt::print("chance\t{:.2f} %\n", 100 * *r.chance);
  fmt::print("weights of states");
  const std::vector<double> shares = mean_shares(r);
  for (size_t l = 0; l < shares.size(); ++l) fmt::print("\t{}: {:.3f}", r.states[l], shares[l]);
  fmt::print("\n");
}

}  // namespace

int main(int argc, char** argv) {
  return run_tool(argc, argv, "sft-probe", [](Cli& cli) {
    Options o;
    o.parse(cli);
    cpu::choose_isa();
    const RunConfig config = build_config(cli, o);
    std::optional<OutputDirectory> run;
    if (!o.output.empty()) run.emplace(o.output, o.force ? Existing::replace : Existing::refuse);
    Progress line(cli);
    ProbeJob job{.model = o.model, .task = o.task, .config = config, .rates = {config.probe.lr}};
    if (o.sweep) job.rates.assign(std::begin(kProbeRates), std::end(kProbeRates));
    job.say = [&](const std::string& text) { cli.say("{}", text); };
    std::string phase;
    job.progress = [&](const std::string& now, double done, double total) {
      if (now != phase) line.phase(phase = now, now == "train" ? "update" : "utt");
      line.update(done, total);
    };
    const ProbeReport report = probe(job);
    line.finish();
    const std::string json =
        to_json(report, config, o.model).dump(1, ' ', false, Json::error_handler_t::replace);
    if (run) {
      write_text(run->file("probe.json"), json + "\n");
      write_text(run->file("run.toml"), to_toml(config));
      write_text(run->file("record.json"),
                 record_json(cli.command_line(), o.model, report.model_id, config));
      run->commit();
    }
    if (cli.json())
      fmt::print("{}\n", json);
    else
      print_text(report);
  });
}
