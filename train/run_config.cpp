#include "train/run_config.h"

#include <fmt/format.h>
#include <toml++/toml.h>

#include <algorithm>
#include <charconv>
#include <cmath>

#include "engine/check.h"
#include "engine/io/file.h"
#include "engine/nearest.h"
#include "train/text.h"

namespace sft {
namespace {

constexpr uint64_t kMaxFile = 1 << 20;

std::vector<std::string> keys() {
  std::vector<std::string> names;
  RunConfig config;
  config.fields([&](const char* key, auto&) { names.push_back(key); });
  return names;
}

[[noreturn]] void unknown_key(std::string_view key, std::string_view where) {
  fail(Kind::usage, Hint{did_you_mean(key, keys())}, "{}: there is no key {}", where,
       printable(key));
}

[[noreturn]] void bad_value(std::string_view key, std::string_view where, std::string_view wanted) {
  fail(Kind::usage, "{}: {} is not {}", where, key, wanted);
}

// ---- from text ("--set key=value")

template <class T>
T number(std::string_view key, const std::string& text, std::string_view where) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size())
    bad_value(key, where, std::is_integral_v<T> ? "a whole number" : "a number");
  return value;
}

void parse(std::string_view key, const std::string& text, std::string_view where, int64_t& to) {
  to = number<int64_t>(key, text, where);
}
void parse(std::string_view key, const std::string& text, std::string_view where, double& to) {
  to = number<double>(key, text, where);
}
void parse(std::string_view, const std::string& text, std::string_view, std::string& to) {
  to = text;
}
void parse(std::string_view key, const std::string& text, std::string_view where, bool& to) {
  if (text != "true" && text != "false") bad_value(key, where, "true or false");
  to = text == "true";
}
void parse(std::string_view, const std::string& text, std::string_view,
           std::vector<std::string>& to) {
  to.clear();
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    to.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
}

// ---- from TOML

void take(std::string_view key, const toml::node& node, std::string_view where, int64_t& to) {
  if (!node.is_integer()) bad_value(key, where, "a whole number");
  to = node.as_integer()->get();
}
void take(std::string_view key, const toml::node& node, std::string_view where, double& to) {
  if (!node.is_number()) bad_value(key, where, "a number");
  to = *node.value<double>();
}
void take(std::string_view key, const toml::node& node, std::string_view where, bool& to) {
  if (!node.is_boolean()) bad_value(key, where, "true or false");
  to = node.as_boolean()->get();
}
void take(std::string_view key, const toml::node& node, std::string_view where, std::string& to) {
  if (!node.is_string()) bad_value(key, where, "a string");
  to = node.as_string()->get();
}
void take(std::string_view key, const toml::node& node, std::string_view where,
          std::vector<std::string>& to) {
  if (!node.is_array()) bad_value(key, where, "an array of strings");
  to.clear();
  for (const toml::node& item : *node.as_array()) {
    if (!item.is_string()) bad_value(key, where, "an array of strings");
    to.push_back(item.as_string()->get());
  }
}

// ---- to TOML

std::string quoted(const std::string& text) {
  std::string out = "\"";
  for (char c : text) {
    if (c == '"' || c == '\\') out += '\\';
    if (static_cast<unsigned char>(c) < 0x20)
      out += fmt::format("\\u{:04x}", static_cast<unsigned>(c));
    else
      out += c;
  }
  return out + "\"";
}
std::string shown(int64_t value) { return fmt::format("{}", value); }
std::string shown(bool value) { return value ? "true" : "false"; }
std::string shown(const std::string& value) { return quoted(value); }
std::string shown(double value) {
  std::string text = fmt::format("{}", value);
  if (text.find_first_of(".en") == std::string::npos) text += ".0";
  return text;
}
std::string shown(const std::vector<std::string>& values) {
  std::string out = "[";
  for (size_t i = 0; i < values.size(); ++i) out += (i ? ", " : "") + quoted(values[i]);
  return out + "]";
}

template <class Take>
void assign(RunConfig& config, std::string_view key, std::string_view where, Take&& take_value) {
  bool found = false;
  config.fields([&](const char* name, auto& member) {
    if (key != name) return;
    take_value(member);
    found = true;
  });
  if (!found) unknown_key(key, where);
}

// Calls f(key, node) for the leaves of a document.
template <class F>
void leaves(const toml::table& table, const std::string& prefix, F&& f) {
  for (const auto& [name, node] : table) {
    const std::string key = prefix + std::string(name.str());
    if (const toml::table* inner = node.as_table())
      leaves(*inner, key + ".", f);
    else
      f(key, node);
  }
}

toml::table parse_toml(const std::string& path) {
  const std::string text = read_text(path, kMaxFile);
  try {
    return toml::parse(text, path);
  } catch (const toml::parse_error& e) {
    fail(Kind::usage, "{}:{}: {}", path, e.source().begin.line, printable(e.description()));
  }
}

}  // namespace

ConfigBuilder::ConfigBuilder(std::string_view task) : task_(task) {
  config_.task.kind = task;
  if (task == "classify") {
    config_.head.kind = "mean";
    config_.augment.specaugment = false;
    config_.eval.select = "accuracy";
  } else if (task == "pretrain") {
    config_.train.recipe = "full";
    config_.train.head_only = 0;
    config_.model.layerdrop = -1;
    config_.train.freeze.clear();
    config_.optim = {
        .kind = "adamw", .lr = 5e-4, .beta2 = 0.98, .eps = 1e-6, .weight_decay = 0.01, .clip = 10};
    config_.sched = {.kind = "linear", .warmup = 0.08, .hold = 0};
    config_.augment.specaugment = false;
    config_.batch = {.utterances = 0, .seconds = 16};
    config_.eval.select = "loss";
  }
}

void ConfigBuilder::apply_recipe() {
  const std::string& name = config_.train.recipe;
  if (name != "stable" && name != "full")
    fail(Kind::usage, "{}: there is no recipe {} (expected stable or full)",
         origin_["train.recipe"], printable(name));
  const auto given = origin_.find("train.head_only");
  if (given != origin_.end() && !given->second.starts_with("recipe ")) return;
  config_.train.head_only = name == "stable" ? 0.1 : 0;
  origin_["train.head_only"] = fmt::format("recipe {}", name);
}

void ConfigBuilder::file(const std::string& path) {
  leaves(parse_toml(path), "", [&](const std::string& key, const toml::node& node) {
    assign(config_, key, path, [&](auto& member) { take(key, node, path, member); });
    note(key, path);
  });
}

void ConfigBuilder::set(const std::string& setting) {
  const size_t equals = setting.find('=');
  if (equals == std::string::npos)
    fail(Kind::usage, "--set {}: expected KEY=VALUE", printable(setting));
  set(setting.substr(0, equals), setting.substr(equals + 1), "--set");
}

void ConfigBuilder::set(std::string_view key, const std::string& value, std::string_view origin) {
  assign(config_, key, origin, [&](auto& member) { parse(key, value, origin, member); });
  note(key, origin);
}

// One size of a batch takes the other's place, unless both are given.
void ConfigBuilder::note(std::string_view key, std::string_view origin) {
  if (key == "batch.seconds" && !origin_.contains("batch.utterances")) config_.batch.utterances = 0;
  if (key == "batch.utterances" && !origin_.contains("batch.seconds")) config_.batch.seconds = 0;
  origin_[std::string(key)] = origin;
  if (key == "train.recipe") apply_recipe();
}

void ConfigBuilder::set_default(std::string_view key, const std::string& value,
                                std::string_view origin) {
  if (!origin_.contains(key)) set(key, value, origin);
}

namespace {

void require(bool ok, std::string_view message) {
  if (!ok) fail(Kind::usage, "configuration: {}", message);
}

bool share(double x) { return x >= 0 && x <= 1; }
bool rate(double x) { return x >= 0 && x < 1; }
bool between(int64_t low, int64_t x, int64_t high) { return low <= x && x <= high; }
bool one_of(std::string_view x, std::initializer_list<std::string_view> choices) {
  return std::find(choices.begin(), choices.end(), x) != choices.end();
}

void check_training(const RunConfig& c) {
  require(between(1, c.train.steps, 100'000'000), "train.steps is not in 1..1e8");
  require(share(c.train.head_only), "train.head_only is not in [0, 1]");
  require(between(1, c.train.accumulate, 1'000'000), "train.accumulate is not in 1..1e6");
  require(c.train.max_skips >= 1, "train.max_skips is not at least 1");
  require(one_of(c.optim.kind, {"adam", "adamw"}), "optim.kind is not adam or adamw");
  require(c.optim.lr >= 0 && std::isfinite(c.optim.lr), "optim.lr is not a rate");
  require(rate(c.optim.beta1) && rate(c.optim.beta2),
          "optim.beta1 or optim.beta2 is not in [0, 1)");
  require(c.optim.eps > 0 && c.optim.clip > 0 && c.optim.weight_decay >= 0,
          "optim.eps, .clip or .weight_decay is out of range");
  require(one_of(c.sched.kind, {"tri_stage", "linear", "constant"}),
          "sched.kind is not tri_stage, linear or constant");
  require(share(c.sched.warmup) && share(c.sched.hold) && c.sched.warmup + c.sched.hold <= 1,
          "sched.warmup and sched.hold are not shares of the run");
}

void check_model(const RunConfig& c) {
  for (double p : {c.model.dropout, c.model.attention_dropout, c.model.activation_dropout,
                   c.model.input_dropout})
    require(p == -1 || rate(p), "model.*dropout is not in [0, 1), or -1 for the model file's");
  require((c.model.layerdrop == -1 && c.task.kind == "pretrain") || rate(c.model.layerdrop),
          "model.layerdrop is not in [0, 1) (pre-training: or -1 for the model file's)");
  require(c.task.kind != "ctc" || one_of(c.head.kind, {"blstm", "linear", "projector"}),
          "head.kind is not blstm, linear or projector, the heads of CTC");
  require(c.task.kind != "classify" || c.head.kind == "mean",
          "head.kind is not mean, the head of classification");
  require(between(1, c.head.width, 65536) && between(1, c.head.layers, 16),
          "head.width is not in 1..65536, or head.layers not in 1..16");
  require(rate(c.head.dropout), "head.dropout is not in [0, 1)");
}

void check_data_keys(const RunConfig& c) {
  require(c.batch.utterances >= 0 && (c.batch.utterances > 0) != (c.batch.seconds > 0),
          "batch.utterances and batch.seconds exclude each other: give one");
  require(c.batch.utterances <= 1'000'000, "batch.utterances is more than 1e6");
  require(c.data.min_seconds >= 0 && c.data.max_seconds >= c.data.min_seconds,
          "data.min_seconds or .max_seconds is out of range");
  require(c.data.max_bad >= 0, "data.max_bad is not a number of rows");
  parse_normalise(c.data.normalize);
  const auto& a = c.augment;
  for (int64_t x : {a.time_warp, a.freq_masks, a.freq_width, a.time_masks, a.time_width})
    require(between(0, x, 10'000),
            "augment.time_warp, .freq_masks, .freq_width, .time_masks or .time_width is not in "
            "0..10000");
}

void check_pretraining(const RunConfig& c) {
  require(between(1, c.pretrain.clusters, 1'000'000), "pretrain.clusters is not in 1..1e6");
  require(share(c.pretrain.mask_prob) && between(1, c.pretrain.mask_length, 10'000),
          "pretrain.mask_prob is not in [0, 1], or .mask_length not in 1..10000");
  require(c.pretrain.temperature > 0 && c.pretrain.feature_penalty >= 0 &&
              c.pretrain.feature_grad_mult >= 0,
          "pretrain.temperature, .feature_penalty or .feature_grad_mult is out of range");
  require(one_of(c.pretrain.objective, {"hubert", "wav2vec2"}),
          "pretrain.objective is not hubert or wav2vec2");
  require(between(1, c.pretrain.negatives, 10'000), "pretrain.negatives is not in 1..10000");
  require(c.pretrain.diversity >= 0 && std::isfinite(c.pretrain.diversity),
          "pretrain.diversity is out of range");
  require(c.pretrain.gumbel_start > 0 && c.pretrain.gumbel_floor > 0 &&
              c.pretrain.gumbel_decay > 0 && c.pretrain.gumbel_decay <= 1,
          "pretrain.gumbel_start or .gumbel_floor is not above 0, or .gumbel_decay not in (0, 1]");
}

// What evaluation will be asked for, before hours of training.
void check_selection(const RunConfig& c) {
  require(c.task.kind != "pretrain" || one_of(c.eval.select, {"loss", "accuracy"}),
          "eval.select is not loss or accuracy, the scores of pre-training");
  require(c.task.kind != "classify" || c.eval.select == "accuracy",
          "eval.select is not accuracy, the score of classification");
  require(c.task.kind != "ctc" || one_of(c.eval.select, {"wer", "cer", "per"}),
          "eval.select is not wer, cer or per, the scores of CTC");
}

void check_probing(const RunConfig& c) {
  require(c.probe.steps >= 1 && c.probe.batch >= 1 && c.probe.seeds >= 1 && c.probe.lr > 0 &&
              std::isfinite(c.probe.lr),
          "probe.steps, .batch, .seeds or .lr is out of range");
}

}  // namespace

RunConfig ConfigBuilder::finish() const {
  const RunConfig& c = config_;
  if (c.task.kind != task_)
    fail(Kind::usage, "configuration: task.kind is {}, the command line asks for {}",
         printable(c.task.kind), task_);
  check_training(c);
  check_model(c);
  check_data_keys(c);
  check_pretraining(c);
  check_selection(c);
  check_probing(c);
  require(c.eval.every >= 1 && c.ckpt.keep >= 2 && c.ckpt.minutes > 0 && c.log.every >= 1,
          "eval.every, ckpt.keep (2 at least), ckpt.minutes or log.every is out of range");
  require(c.run.seed >= 0, "run.seed is negative");
  require(c.run.device == "cpu" || c.run.device == "cuda", "run.device is neither cpu nor cuda");
  const bool cpu = c.run.device == "cpu";
  require(c.run.math == "exact" || c.run.math == "bf16" || (c.run.math == "fast16" && cpu),
          "run.math is not exact, bf16 or, with run.device=cpu, fast16");
  return c;
}

std::string ConfigBuilder::print() const {
  std::string out;
  RunConfig copy = config_;
  copy.fields([&](const char* key, auto& member) {
    const auto origin = origin_.find(key);
    out += fmt::format("{} = {}  # {}\n", key, shown(member),
                       origin == origin_.end() ? "default" : origin->second);
  });
  return out;
}

std::string to_toml(const RunConfig& config) {
  std::string out, section;
  RunConfig copy = config;
  copy.fields([&](std::string_view key, auto& member) {
    const std::string_view head = key.substr(0, key.find('.'));
    if (head != section)
      out += fmt::format("{}[{}]\n", section.empty() ? "" : "\n", head), section = head;
    out += fmt::format("{} = {}\n", key.substr(head.size() + 1), shown(member));
  });
  return out;
}

RunConfig run_config_from_toml(const std::string& path) {
  RunConfig config;
  leaves(parse_toml(path), "", [&](const std::string& key, const toml::node& node) {
    assign(config, key, path, [&](auto& member) { take(key, node, path, member); });
  });
  return config;
}

std::string first_difference(const RunConfig& before, const RunConfig& now) {
  std::map<std::string, std::string> old_values;
  RunConfig a = before, b = now;
  a.fields([&](const char* key, auto& member) { old_values[key] = shown(member); });
  std::string difference;
  b.fields([&](const char* key, auto& member) {
    if (difference.empty() && shown(member) != old_values[key])
      difference = fmt::format("{} is {}, was {}", key, shown(member), old_values[key]);
  });
  return difference;
}

}  // namespace sft
