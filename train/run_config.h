// The configuration of a run: keys of docs/contract.md section 8. One list of fields serves
// defaults, files, --set, printing and the resolved run.toml.
//
// Precedence: defaults < recipe < --config FILE < --set key=value < flags of the tool.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace sft {

struct RunConfig {
  struct {
    int64_t steps = 50000;   // N updates
    double head_only = 0.1;  // beta: share of updates that train the head alone
    std::vector<std::string> freeze = {"conv.*"};  // globs over names of parameters
    int64_t accumulate = 1, max_skips = 100;
    std::string recipe = "stable";
    bool recompute = false;  // rebuild activations on the way back
  } train;
  struct {
    std::string kind = "adam";  // adam: decay added to the gradient; adamw: decoupled
    double lr = 1e-4, beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0, clip = 1;
  } optim;
  struct {
    std::string kind = "tri_stage";  // tri_stage, linear (after the warm-up), constant
    double warmup = 0.1, hold = 0.4;
  } sched;
  struct {
    double dropout = -1, attention_dropout = -1, activation_dropout = -1,
           input_dropout = -1;  // -1: the model file's
    double layerdrop = 0;       // pre-training: -1, the model file's
  } model;
  struct {
    std::string manifest, label, split_column = "split";
    std::string train = "train", dev = "dev", test = "test";
    int64_t max_bad = 0;  // rows of a split that may be left out
    double min_seconds = 0.025, max_seconds = 60;
    std::string units = "chars", normalize = "upper";
  } data;
  struct {
    std::string kind = "blstm";  // CTC: blstm, linear, projector; classes: mean
    int64_t width = 256, layers = 3;
    double dropout = 0.2;
  } head;
  struct {
    bool specaugment = true;
    int64_t time_warp = 5, freq_masks = 4, freq_width = 50, time_masks = 2, time_width = 40;
  } augment;
  struct {
    int64_t every = 2000;
    std::string select = "wer";  // wer, cer, per, accuracy; pre-training: loss, accuracy
  } eval;
  struct {
    double minutes = 10;
    int64_t keep = 2;
  } ckpt;
  struct {
    int64_t utterances = 16;
    double seconds = 0;  // in place of utterances
  } batch;
  struct {
    int64_t every = 10;
  } log;
  struct {
    std::string kind = "ctc";  // ctc, classify, pretrain
  } task;
  struct {
    std::string objective = "hubert";  // or wav2vec2
    std::string targets = "mfcc";      // or hidden:N
    std::string teacher;               // model of the hidden states; empty: the model itself
    int64_t clusters = 100, mask_length = 10;
    double mask_prob = 0.8, temperature = 0.1, feature_penalty = 10, feature_grad_mult = 0.1;
    int64_t negatives = 100;  // this and what follows: wav2vec2
    double diversity = 0.1;
    double gumbel_start = 2, gumbel_decay = 0.999995, gumbel_floor = 0.5;
  } pretrain;
  struct {  // defaults of a task: train/probe.h
    int64_t steps = 500, batch = 32, seeds = 1;
    double lr = 1e-3;
    std::string states = "all";  // last, or a list: 0,6,12
  } probe;
  struct {
    int64_t seed = 0, threads = 0;
    std::string math = "exact", device = "cpu";
  } run;

  // Calls f(key, member) for every field, in the order in which they are printed.
  template <class F>
  void fields(F&& f);
};

// A RunConfig and where each value is from.
class ConfigBuilder {
 public:
  // Defaults for a kind of task ("ctc", "classify", "pretrain"): what section 8 says depends on it.
  explicit ConfigBuilder(std::string_view task);

  void file(const std::string& path);    // TOML
  void set(const std::string& setting);  // "key=value"
  // A flag of the tool; `origin` is its name. A recipe (train.recipe, wherever it is given) also
  // sets what it stands for, unless that is set itself.
  void set(std::string_view key, const std::string& value, std::string_view origin);

  // A value that depends on another one: only where nobody set the key.
  void set_default(std::string_view key, const std::string& value, std::string_view origin);

  const RunConfig& config() const { return config_; }
  // Kind::usage for values out of range or that exclude each other.
  RunConfig finish() const;
  std::string print() const;  // key = value  # origin

 private:
  void note(std::string_view key, std::string_view origin);
  void apply_recipe();

  std::string task_;
  RunConfig config_;
  std::map<std::string, std::string, std::less<>> origin_;  // absent: default
};

std::string to_toml(const RunConfig& config);
// Reads what to_toml wrote.
RunConfig run_config_from_toml(const std::string& path);

// "train.steps is 20, was 10": the first key that differs; empty: none does.
std::string first_difference(const RunConfig& before, const RunConfig& now);

template <class F>
void RunConfig::fields(F&& f) {
  f("task.kind", task.kind), f("train.recipe", train.recipe);
  f("train.steps", train.steps), f("train.head_only", train.head_only);
  f("train.freeze", train.freeze), f("train.accumulate", train.accumulate);
  f("train.max_skips", train.max_skips), f("train.recompute", train.recompute);
  f("optim.kind", optim.kind), f("optim.lr", optim.lr), f("optim.beta1", optim.beta1);
  f("optim.beta2", optim.beta2), f("optim.eps", optim.eps);
  f("optim.weight_decay", optim.weight_decay), f("optim.clip", optim.clip);
  f("sched.kind", sched.kind), f("sched.warmup", sched.warmup), f("sched.hold", sched.hold);
  f("model.dropout", model.dropout), f("model.attention_dropout", model.attention_dropout);
  f("model.activation_dropout", model.activation_dropout);
  f("model.input_dropout", model.input_dropout), f("model.layerdrop", model.layerdrop);
  f("data.manifest", data.manifest), f("data.label", data.label);
  f("data.split_column", data.split_column);
  f("data.train", data.train), f("data.dev", data.dev), f("data.test", data.test);
  f("data.max_bad", data.max_bad), f("data.min_seconds", data.min_seconds);
  f("data.max_seconds", data.max_seconds), f("data.units", data.units);
  f("data.normalize", data.normalize);
  f("head.kind", head.kind), f("head.width", head.width), f("head.layers", head.layers);
  f("head.dropout", head.dropout);
  f("augment.specaugment", augment.specaugment), f("augment.time_warp", augment.time_warp);
  f("augment.freq_masks", augment.freq_masks), f("augment.freq_width", augment.freq_width);
  f("augment.time_masks", augment.time_masks), f("augment.time_width", augment.time_width);
  f("eval.every", eval.every), f("eval.select", eval.select);
  f("ckpt.minutes", ckpt.minutes), f("ckpt.keep", ckpt.keep);
  f("batch.utterances", batch.utterances), f("batch.seconds", batch.seconds);
  f("log.every", log.every);
  f("pretrain.objective", pretrain.objective);
  f("pretrain.targets", pretrain.targets), f("pretrain.teacher", pretrain.teacher);
  f("pretrain.clusters", pretrain.clusters), f("pretrain.mask_prob", pretrain.mask_prob);
  f("pretrain.mask_length", pretrain.mask_length), f("pretrain.temperature", pretrain.temperature);
  f("pretrain.feature_penalty", pretrain.feature_penalty);
  f("pretrain.feature_grad_mult", pretrain.feature_grad_mult);
  f("pretrain.negatives", pretrain.negatives), f("pretrain.diversity", pretrain.diversity);
  f("pretrain.gumbel_start", pretrain.gumbel_start);
  f("pretrain.gumbel_decay", pretrain.gumbel_decay);
  f("pretrain.gumbel_floor", pretrain.gumbel_floor);
  f("probe.steps", probe.steps), f("probe.batch", probe.batch), f("probe.seeds", probe.seeds);
  f("probe.lr", probe.lr), f("probe.states", probe.states);
  f("run.seed", run.seed), f("run.threads", run.threads), f("run.math", run.math);
  f("run.device", run.device);
}

}  // namespace sft
