#include "train/trainer.h"

#include <fmt/format.h>
#include <unistd.h>

#include <chrono>
#include <cmath>
#include <csignal>
#include <cstring>
#include <limits>

#include "engine/formats/gguf.h"
#include "engine/formats/safetensors.h"
#include "engine/ops/adam.h"
#include "engine/ops/grad_norm.h"

namespace sft {
namespace {

volatile std::sig_atomic_t stop_signals = 0;

void on_stop_signal(int signal) {
  stop_signals = stop_signals + 1;
  if (stop_signals > 1) _exit(128 + signal);
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
      ctx_{.acts = acts_,
           .scratch = scratch_,
           .prepared = store.prepared(),
           .rng = {static_cast<uint64_t>(config.run.seed), 0}},
      tape_(ctx_) {
  for (int64_t samples : objective.samples()) frames_.push_back(model.frames(samples));
}

Batch Trainer::update_batch(int64_t u, int64_t micro) const {
  const int64_t b = u * config_.train.accumulate + micro;
  return batches_.empty() ? plan_.batch(b) : batches_[b % static_cast<int64_t>(batches_.size())];
}

void Trainer::activate(int64_t u) {
  for (size_t r = 0; r < store_.ranges().size(); ++r)
    store_.set_active(static_cast<int>(r), trains(u, r));
}

Trainer::MemoryPlan Trainer::plan_memory(int64_t available) {
  MemoryPlan plan;
  activate(config_.train.steps - 1);
  ctx_.dry = true;
  const auto measure = [&](int64_t micro_frames) {
    int64_t acts = 0, scratch = 0;
    for (const Batch& group : plan_.groups()) {
      std::vector<Batch> pieces{group};
      if (micro_frames) pieces = micro_batches(group, frames_, micro_frames);
      for (const Batch& piece : pieces) {
        acts_.rewind(0), scratch_.rewind(0);
        acts_.forget_peak(), scratch_.forget_peak();
        store_.forget_gradients();
        objective_.begin_update(ctx_.rng, group);
        objective_.forward(tape_, piece);
        tape_.backward();
        tape_.clear();
        acts = std::max(acts, acts_.peak()), scratch = std::max(scratch, scratch_.peak());
      }
    }
    plan.activations = acts, plan.scratch = scratch, plan.micro_frames = micro_frames;
  };
  measure(0);
  plan.parameters = store_.bytes();
  int64_t longest = 0, largest = 0;
  for (int64_t frames : frames_) longest = std::max(longest, frames);
  for (const Batch& group : plan_.groups()) {
    int64_t frames = 0;
    for (uint32_t i : group) frames += frames_[i];
    largest = std::max(largest, frames);
  }
  for (int64_t frames = largest / 2;
       plan.total() > available && frames >= longest / 2 && frames > 0; frames /= 2)
    measure(frames);
  ctx_.dry = false;
  acts_.rewind(0), scratch_.rewind(0);
  acts_.forget_peak(), scratch_.forget_peak();
  micro_frames_ = plan.micro_frames;
  report_.planned_bytes = plan.total();
  return plan;
}

// Forward and backward of all micro-batches, then the update itself.
Trainer::Outcome Trainer::update(int64_t u) {
  ctx_.rng.update = static_cast<uint32_t>(u);
  activate(u);
  store_.forget_gradients();
  Batch all;
  std::vector<Batch> pieces;
  for (int64_t k = 0; k < config_.train.accumulate; ++k) {
    const Batch batch = update_batch(u, k);
    all.insert(all.end(), batch.begin(), batch.end());
    if (!micro_frames_)
      pieces.push_back(batch);
    else
      for (Batch& piece : micro_batches(batch, frames_, micro_frames_))
        pieces.push_back(std::move(piece));
  }
  objective_.prefetch(update_batch(u + 1, 0));
  objective_.begin_update(ctx_.rng, all);
  Outcome outcome;
  for (const Batch& piece : pieces) {
    acts_.rewind(0), scratch_.rewind(0);
    objective_.forward(tape_, piece);
    tape_.backward();
    outcome.loss += objective_.loss();
    tape_.clear();
  }
  store_.zero_unwritten();
  std::vector<Tensor> gradients;
  for (size_t r = 0; r < store_.ranges().size(); ++r)
    if (trains(u, r)) gradients.push_back(store_.part(store_.grad(), store_.ranges()[r]));
  outcome.norm = std::sqrt(grad_norm(ctx_, gradients));
  outcome.skipped = !std::isfinite(outcome.norm) || !std::isfinite(outcome.loss);
  if (!outcome.skipped) apply(u, outcome.norm);
  return outcome;
}

void Trainer::apply(int64_t u, double norm) {
  const auto& o = config_.optim;
  AdamStep step{.lr = static_cast<float>(o.lr * schedule_.factor(u)),
                .beta1 = static_cast<float>(o.beta1),
                .beta2 = static_cast<float>(o.beta2),
                .eps = static_cast<float>(o.eps),
                .weight_decay = static_cast<float>(o.weight_decay),
                .decoupled = o.kind == "adamw",
                .clip_factor = static_cast<float>(std::min(1.0, o.clip / (norm + 1e-6)))};
  for (size_t r = 0; r < store_.ranges().size(); ++r) {
    ParamStore::Range& range = store_.ranges()[r];
    if (!trains(u, r) || range.count() == 0) continue;
    step.step = ++range.steps;
    adam(ctx_, store_.part(store_.master(), range), store_.part(store_.grad(), range),
         store_.part(store_.moment1(), range), store_.part(store_.moment2(), range), step);
    store_.weights_changed(range);
  }
}

int64_t Trainer::evaluation_interval() const {
  return std::max<int64_t>(1, std::min(config_.eval.every, config_.train.steps / 10));
}

void Trainer::evaluate(int64_t step) {
  acts_.rewind(0), scratch_.rewind(0);
  const Scores scores = objective_.evaluate(ctx_, run_.new_evaluation(step));
  std::string fields;
  for (const auto& [name, value] : scores.values)
    fields += fmt::format(",\"dev.{}\":{:.6g}", name, value);
  run_.metrics(fmt::format("{{\"step\":{}{}}}", step, fields));
  const bool best = report_.best_step < 0 || scores.better_than(report_.best);
  if (best) report_.best = scores.selected, report_.best_step = step;
  save(step);
  if (best) run_.mark_best(step);
  run_.prune(config_.ckpt.keep);
}

void Trainer::save(int64_t step) {
  run_.save_checkpoint(step, [&](const std::string& folder) {
    TensorMap tensors = pass_through_;
    for (const ParamStore::Named& named : store_.named()) tensors.tensors[named.name] = named.value;
    Config model = model_;
    model.provenance.set("sft.train.step", step);
    save_model(folder + "/model.gguf", "gguf", model, tensors);
    Metadata state;
    state.set("step", std::to_string(step));
    state.set("best", fmt::format("{:a}", report_.best));
    state.set("best_step", std::to_string(report_.best_step));
    state.set("skipped", std::to_string(report_.skipped));
    for (const ParamStore::Range& range : store_.ranges())
      state.set("steps." + range.name, std::to_string(range.steps));
    const Shape flat{store_.master().count()};
    TensorWriter writer = create_safetensors(folder + "/state.safetensors", state,
                                             {{"moment1", flat}, {"moment2", flat}});
    writer.write("moment1", store_.moment1());
    writer.write("moment2", store_.moment2());
    writer.finish();
  });
}

bool Trainer::resume(const std::function<void(const std::string&)>& say) {
  const auto checkpoint = run_.last_checkpoint(say);
  if (!checkpoint) return false;
  const ModelFile model = open_model(checkpoint->folder + "/model.gguf");
  for (const ParamStore::Named& named : store_.named()) {
    const Tensor saved = model.tensors.find(named.name);
    if (!saved.data || saved.shape != named.value.shape)
      fail(Kind::input, "{}: tensor {} is not what this run trains", model.path, named.name);
    if (named.range >= 0) std::memcpy(named.value.data, saved.data, saved.bytes());
  }
  const TensorFile state = open_tensor_file(checkpoint->folder + "/state.safetensors");
  for (const auto& [name, flat] :
       {std::pair{"moment1", store_.moment1()}, {"moment2", store_.moment2()}}) {
    const TensorInfo& info = state.at(name);
    if (info.shape != flat.shape)
      fail(Kind::input, "{}: {} is {} (expected {})", state.path(), name, info.shape, flat.shape);
    state.read_f32(info, {flat.f32(), static_cast<size_t>(flat.count())});
  }
  step_ = std::stoll(state.metadata().string("step"));
  report_.best = std::strtod(state.metadata().string("best").c_str(), nullptr);
  report_.best_step = std::stoll(state.metadata().string("best_step"));
  report_.skipped = std::stoll(state.metadata().string("skipped"));
  for (ParamStore::Range& range : store_.ranges())
    range.steps = std::stoll(state.metadata().string("steps." + range.name));
  run_.rewind_metrics(step_);
  // The crash may have come between a checkpoint and its mark.
  if (report_.best_step >= 0 && run_.best_step() != report_.best_step)
    run_.mark_best(report_.best_step);
  return true;
}

void Trainer::log_step(int64_t u, const Outcome& outcome) {
  std::string fields;
  for (const auto& [name, value] : objective_.details())
    fields += fmt::format(",\"{}\":{:.6g}", name, value);
  const auto number = [](double x) { return std::isfinite(x) ? fmt::format("{:.8g}", x) : "null"; };
  run_.metrics(fmt::format(
      "{{\"step\":{},\"loss\":{},\"norm\":{},\"lr\":{:.8g},\"phase\":\"{}{}\",\"skipped\":{}{},"
      "\"seconds\":{:.3f}}}",
      u + 1, number(outcome.loss), number(outcome.norm), config_.optim.lr * schedule_.factor(u),
      u < head_steps() ? "head-only " : "", schedule_.phase(u), report_.skipped, fields, seconds_));
}

TrainerReport Trainer::run(const OnProgress& progress) {
  const int64_t N = config_.train.steps, E = evaluation_interval();
  double saved_at = now();
  objective_.prefetch(update_batch(step_, 0));
  for (int64_t u = step_; u < N; ++u) {
    const double begin = now();
    const Outcome outcome = update(u);
    seconds_ += now() - begin;
    step_ = u + 1;
    skips_in_row_ = outcome.skipped ? skips_in_row_ + 1 : 0;
    if (outcome.skipped) {
      ++report_.skipped;
      run_.log(fmt::format("update {}: loss {} and gradient norm {}: skipped; batch {}", u,
                           outcome.loss, outcome.norm, objective_.names(update_batch(u, 0))));
    }
    if (step_ % config_.log.every == 0 || step_ == N || outcome.skipped) log_step(u, outcome);
    progress(step_, outcome.loss,
             fmt::format("loss {:.4g} | norm {:.3g} | lr {:.2e} {}{}", outcome.loss, outcome.norm,
                         config_.optim.lr * schedule_.factor(u),
                         u < head_steps() ? "head-only " : "", schedule_.phase(u)));
    if (skips_in_row_ > config_.train.max_skips)
      fail(Kind::diverged, Hint{"lower optim.lr, or look at log.txt for the batches"},
           "{}: {} updates in a row had no finite gradient", run_.path(), skips_in_row_);
    if (step_ % E == 0 || step_ == N) {
      evaluate(step_);
      saved_at = now();
    } else if (stop_signals || now() - saved_at > 60 * config_.ckpt.minutes) {
      save(step_);
      run_.prune(config_.ckpt.keep);
      saved_at = now();
    }
    if (stop_signals && step_ < N)
      fail(Kind::stopped, Hint{fmt::format("go on with --resume -o {}", run_.path())},
           "{}: stopped by a signal after update {}; state is saved", run_.path(), step_);
  }
  run_.mark_done();
  report_.step = step_;
  return report_;
}

}  // namespace sft
