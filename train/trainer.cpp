#include "train/trainer.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <csignal>
#include <numeric>

#include "engine/audio/decode.h"
#include "engine/cuda/gemm_choices.h"
#include "engine/formats/gguf.h"
#include "engine/formats/safetensors.h"
#include "engine/memory.h"
#include "engine/transfer.h"
#include "train/optimise.h"

namespace sft {
namespace {

// Two signals may reach two threads at once.
std::atomic<int> stop_signals = 0;
static_assert(std::atomic<int>::is_always_lock_free);

void on_stop_signal(int signal) {
  if (stop_signals.fetch_add(1) > 0) _exit(128 + signal);
}

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

BatchPlan make_plan(const RunConfig& config, const Objective& objective) {
  return BatchPlan(objective.samples(),
                   {static_cast<int>(config.batch.utterances), config.batch.seconds},
                   static_cast<uint64_t>(config.run.seed));
}

}  // namespace

void install_stop_signals() {
  for (int signal : {SIGTERM, SIGINT, SIGUSR1}) std::signal(signal, on_stop_signal);
}

Trainer::Trainer(const RunConfig& config, const Config& model, ParamStore& store,
                 TensorMap pass_through, Objective& objective, RunDir& run,
                 std::vector<Batch> batches)
    : config_(config),
      model_(model),
      store_(store),
      pass_through_(std::move(pass_through)),
      objective_(objective),
      run_(run),
      plan_(make_plan(config, objective)),
      batches_(std::move(batches)),
      schedule_{config.sched.kind, config.train.steps, config.sched.warmup, config.sched.hold},
      memory_(store.gpu()),
      small_(4096, false, store.gpu()),
      numbers_(small_.tensor({sizeof(Numbers) / sizeof(double)}, Dtype::f64)),
      details_(objective.details()) {
  for (int64_t samples : objective.samples()) frames_.push_back(model.frames(samples));
  cut(0);
}

std::unique_ptr<Trainer::Step> Trainer::make_step(bool dry) {
  Context ctx = memory_.context(store_.prepared(), math_named(config_.run.math), dry);
  ctx.rng.seed = static_cast<uint64_t>(config_.run.seed);
  return std::unique_ptr<Step>(new Step{ctx});
}

Trainer::Step& Trainer::step() {
  if (!real_) memory_.commit(), real_ = make_step(false);
  return *real_;
}

// Which group is batch k of update u.
size_t Trainer::group_of(int64_t u, int64_t k) const {
  const int64_t b = u * config_.train.accumulate + k;
  return batches_.empty() ? plan_.group(b) : static_cast<size_t>(b) % batches_.size();
}

void Trainer::cut(int64_t micro_frames) {
  micro_frames_ = micro_frames;
  pieces_.clear();
  for (const Batch& group : groups())
    pieces_.push_back(micro_frames ? micro_batches(group, frames_, micro_frames)
                                   : std::vector<Batch>{group});
}

void Trainer::prefetch(int64_t u) {
  for (int64_t k = 0; k < config_.train.accumulate; ++k)
    objective_.prefetch(groups()[group_of(u, k)]);
}

void Trainer::activate(int64_t u) {
  for (size_t r = 0; r < store_.ranges().size(); ++r)
    store_.set_active(static_cast<int>(r), trains(u, r));
}

void Trainer::dry_step(Step& dry, const Batch& all, const Batch& piece) {
  auto& [ctx, tape] = dry;
  ctx.acts.rewind(), ctx.scratch.rewind();
  store_.forget_gradients();
  objective_.begin_update(ctx.rng, all);
  objective_.forward(tape, piece);
  tape.backward();
  objective_.add_numbers(ctx, numbers_.slice(1, 1 + Objective::kDetails));
  tape.clear();
}

// Dry steps over all groups as they are cut now, and a dry evaluation.
void Trainer::measure(MemoryPlan& plan) {
  memory_.forget_peak();
  const std::unique_ptr<Step> dry = make_step(true);
  Context& ctx = dry->ctx;
  for (size_t g = 0; g < groups().size(); ++g)
    for (const Batch& piece : pieces_[g]) dry_step(*dry, groups()[g], piece);
  ctx.acts.rewind(), ctx.scratch.rewind();
  optimise(ctx, store_, rule(0), numbers_.slice(1, 1), numbers_.slice(0, 1));
  objective_.plan_evaluation(ctx);
  plan.activations = memory_.acts_peak(), plan.scratch = memory_.scratch_peak();
}

// Seconds of the longest utterance that trains with so many bytes of activations and scratch; 0:
// none does.
double Trainer::longest_that_fits(int64_t bytes) {
  const std::vector<int64_t>& samples = objective_.samples();
  Batch order(samples.size());
  std::iota(order.begin(), order.end(), 0u);
  std::sort(order.begin(), order.end(),
            [&](uint32_t a, uint32_t b) { return samples[a] < samples[b]; });
  const auto needs = [&](int64_t n) {
    memory_.forget_peak();
    const Batch alone{order[n - 1]};
    dry_step(*make_step(true), alone, alone);
    return memory_.peak();
  };
  const int64_t fit = largest_that_fits(static_cast<int64_t>(order.size()), bytes, needs);
  return fit ? static_cast<double>(samples[order[fit - 1]]) / kSampleRate : 0;
}

Trainer::MemoryPlan Trainer::plan_memory(int64_t available) {
  const auto sum = [](const Batch& batch, const std::vector<int64_t>& of) {
    int64_t total = 0;
    for (uint32_t i : batch) total += of[i];
    return total;
  };
  int64_t largest = 0, samples = 0;
  for (const Batch& group : groups()) {
    largest = std::max(largest, sum(group, frames_));
    samples = std::max(samples, sum(group, objective_.samples()));
  }
  const int64_t longest_frames = *std::max_element(frames_.begin(), frames_.end());
  MemoryPlan plan{.on_device = store_.gpu() != nullptr};
  // The masters were touched when the store was bound, and are counted among the parameters.
  plan.process =
      std::max<int64_t>(0, resident_memory() - (plan.on_device ? 0 : store_.master().bytes())) +
      kWorkBytes;
  activate(config_.train.steps - 1);
  cut(0);
  measure(plan);
  for (int64_t frames = largest / 2; frames >= longest_frames / 2 && frames > 0; frames /= 2) {
    plan.parameters = store_.bytes();
    plan.data = objective_.held_bytes(samples);
    if (plan.needed() <= available) break;
    cut(frames);
    measure(plan);
  }
  plan.parameters = store_.bytes();
  plan.data = objective_.held_bytes(samples);
  plan.micro_frames = micro_frames_;
  report_.planned_bytes = plan.total();
  if (plan.needed() > available) {
    const double longest =
        longest_that_fits(available - (plan.needed() - plan.activations - plan.scratch));
    fail(Kind::resource, Hint{"shorter utterances (data.max_seconds), or train.recompute=true"},
         "the run needs {} MiB of {}memory for utterances of {:.1f} s, {} MiB are free: {}",
         plan.needed() >> 20, plan.on_device ? "device " : "",
         static_cast<double>(
             *std::max_element(objective_.samples().begin(), objective_.samples().end())) /
             kSampleRate,
         available >> 20,
         longest > 0 ? fmt::format("enough for {:.1f} s", longest) : "not enough for any");
  }
  return plan;
}

AdamRule Trainer::rule(int64_t u) const {
  const auto& o = config_.optim;
  return {.lr = static_cast<float>(o.lr * schedule_.factor(u)),
          .beta1 = static_cast<float>(o.beta1),
          .beta2 = static_cast<float>(o.beta2),
          .eps = static_cast<float>(o.eps),
          .weight_decay = static_cast<float>(o.weight_decay),
          .decoupled = o.kind == "adamw",
          .clip = o.clip};
}

// Forward and backward of all micro-batches, then the update itself.
Trainer::Issued Trainer::issue(int64_t u) {
  auto& [ctx, tape] = step();
  ctx.rng.update = static_cast<uint32_t>(u);
  activate(u);
  store_.forget_gradients();
  all_.clear();
  for (int64_t k = 0; k < config_.train.accumulate; ++k) {
    const Batch& group = groups()[group_of(u, k)];
    all_.insert(all_.end(), group.begin(), group.end());
  }
  objective_.begin_update(ctx.rng, all_);
  prefetch(u + 1);
  cuda::StepScope device_step(store_.gpu());
  zero(ctx, numbers_);
  for (int64_t k = 0; k < config_.train.accumulate; ++k)
    for (const Batch& piece : pieces_[group_of(u, k)]) {
      ctx.acts.rewind(), ctx.scratch.rewind();
      objective_.forward(tape, piece);
      tape.backward();
      objective_.add_numbers(ctx, numbers_.slice(1, 1 + Objective::kDetails));
      tape.clear();
    }
  optimise(ctx, store_, rule(u), numbers_.slice(1, 1), numbers_.slice(0, 1));
  const cuda::Late numbers = late(ctx, numbers_);
  device_step.end();
  return {u, numbers};
}

int64_t Trainer::evaluation_interval() const {
  return std::max<int64_t>(1, std::min(config_.eval.every, config_.train.steps / 10));
}

void Trainer::evaluate(int64_t step) {
  Context& ctx = this->step().ctx;
  ctx.acts.rewind(), ctx.scratch.rewind();
  const Scores scores = objective_.evaluate(ctx, run_.new_evaluation(step));
  std::string fields;
  for (const auto& [name, value] : scores.values)
    fields += fmt::format(",\"dev.{}\":{:.6g}", name, value);
  run_.metrics(fmt::format("{{\"step\":{}{}}}", step, fields));
  const bool best = report_.best_step < 0 || scores.better_than(report_.best);
  if (best) report_.best = scores.selected, report_.best_step = step;
  save(step);
  if (best) run_.mark_best(step);
  run_.log(fmt::format("update {}: dev {} {:.6g}{}", step, config_.eval.select, scores.selected,
                       best ? ", the best so far" : ""));
  run_.prune(config_.ckpt.keep);
}

void Trainer::save(int64_t step) {
  // Before the checkpoint, which was computed with them.
  if (store_.gpu()) cuda::save_gemm_choices(*store_.gpu(), run_.file("gemm.txt"));
  run_.save_checkpoint(step, [&](const std::string& folder) {
    TensorMap tensors = pass_through_;
    Arena host;
    for (const ParamStore::Named& named : store_.named())
      tensors.tensors[named.name] = store_.on_host(named.value, host);
    Config model = model_;
    model.provenance.set("sft.train.step", step);
    save_model(folder + "/model.gguf", "gguf", model, tensors);
    Metadata state;
    state.set("step", std::to_string(step));
    state.set("best", fmt::format("{:a}", report_.best));
    state.set("best_step", std::to_string(report_.best_step));
    state.set("skipped", std::to_string(report_.skipped));
    state.set("skips_in_row", std::to_string(skips_in_row_));
    state.set("micro_frames", std::to_string(micro_frames_));
    const int64_t* steps = store_.on_host(store_.steps(), host).as<int64_t>();
    for (const ParamStore::Range& range : store_.ranges())
      state.set("steps." + range.name, std::to_string(*steps++));
    const Shape flat{store_.master().count()};
    TensorWriter writer = create_safetensors(folder + "/state.safetensors", state,
                                             {{"moment1", flat}, {"moment2", flat}});
    writer.write("moment1", store_.on_host(store_.moment1(), host));
    writer.write("moment2", store_.on_host(store_.moment2(), host));
    writer.finish();
  });
}

namespace {

int64_t whole(const TensorFile& state, const std::string& key) {
  return std::stoll(state.metadata().string(key));
}

TrainerReport report_of(const TensorFile& state) {
  return {.step = whole(state, "step"),
          .best = std::strtod(state.metadata().string("best").c_str(), nullptr),
          .best_step = whole(state, "best_step"),
          .skipped = whole(state, "skipped")};
}

}  // namespace

TrainerReport read_report(const std::string& checkpoint) {
  return report_of(open_tensor_file(checkpoint + "/state.safetensors"));
}

bool Trainer::resume(const std::function<void(const std::string&)>& say) {
  const auto checkpoint = run_.last_checkpoint(say);
  if (!checkpoint) {
    run_.go_on_from(0);
    return false;
  }
  const ModelFile model = open_model(checkpoint->folder + "/model.gguf");
  for (const ParamStore::Named& named : store_.named()) {
    const Tensor saved = model.tensors.find(named.name);
    if (!saved.data || saved.shape != named.value.shape)
      fail(Kind::input, "{}: tensor {} is not what this run trains", model.path, named.name);
    if (named.range >= 0) store_.write(static_cast<const float*>(saved.data), named.value);
  }
  const TensorFile state = open_tensor_file(checkpoint->folder + "/state.safetensors");
  for (const auto& [name, flat] :
       {std::pair{"moment1", store_.moment1()}, {"moment2", store_.moment2()}}) {
    const TensorInfo& info = state.at(name);
    if (info.shape != flat.shape)
      fail(Kind::input, "{}: {} is {} (expected {})", state.path(), name, info.shape, flat.shape);
    std::vector<float> values(flat.count());
    state.read_f32(info, values);
    store_.write(values.data(), flat);
  }
  const int64_t planned = report_.planned_bytes;
  report_ = report_of(state);
  report_.planned_bytes = planned;
  step_ = report_.step;
  skips_in_row_ = whole(state, "skips_in_row");
  for (ParamStore::Range& range : store_.ranges()) {
    const int64_t steps = whole(state, "steps." + range.name);
    store_.write(&steps, store_.steps(range));
    store_.weights_changed(range);
  }
  // Sums of other pieces round differently: memory that is free now must not change the result.
  if (const int64_t saved = whole(state, "micro_frames"); saved != micro_frames_) {
    say(fmt::format("batches are cut into pieces of {} frames, as when the run began", saved));
    cut(saved);
  }
  run_.go_on_from(step_);
  if (report_.best_step >= 0 && !run_.mark_best(report_.best_step)) {
    say(fmt::format("the best checkpoint so far ({}) is gone: the next evaluation makes another",
                    step_name(report_.best_step)));
    report_.best_step = -1;
  }
  return true;
}

void Trainer::log_step(int64_t u, const Numbers& numbers) {
  std::string fields;
  for (size_t i = 0; i < details_.size(); ++i)
    fields += fmt::format(",\"{}\":{:.6g}", details_[i], numbers.details[i]);
  const auto number = [](double x) { return std::isfinite(x) ? fmt::format("{:.8g}", x) : "null"; };
  run_.metrics(fmt::format(
      "{{\"step\":{},\"loss\":{},\"norm\":{},\"lr\":{:.8g},\"phase\":\"{}{}\",\"skipped\":{}{},"
      "\"seconds\":{:.3f}}}",
      u + 1, number(numbers.loss), number(numbers.norm), config_.optim.lr * schedule_.factor(u),
      u < head_steps() ? "head-only " : "", schedule_.phase(u), report_.skipped, fields, seconds_));
}

std::string Trainer::names(int64_t u) const {
  std::string names;
  for (int64_t k = 0; k < config_.train.accumulate; ++k)
    names.append(k ? " " : "").append(objective_.names(groups()[group_of(u, k)]));
  return names;
}

void Trainer::log_skip(int64_t u, const Numbers& numbers) {
  run_.log(fmt::format("update {}: loss {} and gradient norm {}: skipped; batch {}", u,
                       numbers.loss, numbers.norm, names(u)));
}

void Trainer::show(int64_t u, const Numbers& numbers, const OnProgress& progress) {
  fields_.clear();
  fmt::format_to(std::back_inserter(fields_), "loss {:.4g} | norm {:.3g} | lr {:.2e} {}{}",
                 numbers.loss, numbers.norm, config_.optim.lr * schedule_.factor(u),
                 u < head_steps() ? "head-only " : "", schedule_.phase(u));
  progress(u + 1, numbers.loss, fields_);
}

void Trainer::result(int64_t u, const Numbers& numbers, const OnProgress& progress) {
  const double time = now();
  seconds_ += time - std::exchange(since_, time);
  const bool skipped = numbers.skipped();
  step_ = u + 1;
  skips_in_row_ = skipped ? skips_in_row_ + 1 : 0;
  report_.skipped += skipped;
  show(u, numbers, progress);
  if (skipped) log_skip(u, numbers);
  if (step_ % config_.log.every == 0 || step_ == config_.train.steps || skipped)
    log_step(u, numbers);
  if (skips_in_row_ > config_.train.max_skips)
    fail(Kind::diverged, Hint{"lower optim.lr, or look at log.txt for the batches"},
         "{}: {} updates in a row had no finite gradient", run_.path(), skips_in_row_);
}

// Reads the numbers of the updates issued, but for the last so many.
void Trainer::results(size_t but_last, const OnProgress& progress) {
  for (; issued_.size() > but_last; issued_.erase(issued_.begin()))
    result(issued_.front().update, issued_.front().numbers.get<Numbers>(), progress);
}

TrainerReport Trainer::run(const OnProgress& progress) {
  const int64_t N = config_.train.steps, E = evaluation_interval();
  const size_t under_way = store_.gpu() ? 1 : 0;
  double saved_at = now();
  if (step_ < N) prefetch(step_);
  since_ = now();
  for (int64_t u = step_; u < N; ++u) {
    issued_.push_back(issue(u));
    const bool stop = stop_signals, evaluates = (u + 1) % E == 0 || u + 1 == N;
    const bool saves = evaluates || stop || now() - saved_at > 60 * config_.ckpt.minutes;
    results(saves ? 0 : under_way, progress);
    if (!saves) continue;
    if (evaluates) {
      evaluate(step_);
    } else {
      save(step_);
      run_.prune(config_.ckpt.keep);
    }
    saved_at = since_ = now();
    if (stop && step_ < N)
      fail(Kind::stopped, Hint{fmt::format("go on with --resume -o {}", run_.path())},
           "{}: stopped by a signal after update {}; state is saved", run_.path(), step_);
  }
  run_.mark_done();
  report_.step = step_;
  if (!store_.gpu()) report_.peak_bytes = peak_memory();
  return report_;
}

}  // namespace sft
