// A Trainer over tiny speech with its parts at hand: the store that it updates, and the objective,
// which a test may stand in front of.
#pragma once

#include <memory>
#include <optional>

#include "models/checkpoint.h"
#include "models/initialise.h"
#include "tests/op_spec.h"
#include "tests/train/tiny_speech.h"
#include "train/tasks/finetune.h"

namespace sft::test {

struct TinyTrainer {
  TrainJob job;
  Units units = Units::named("chars");
  ModelFile base;
  Config config;
  FineTuneModel model;
  ParamStore store;
  Split train, dev;
  std::unique_ptr<Objective> objective;
  std::optional<RunDir> run;
  std::optional<Trainer> trainer;

  // CTC with a linear head; job.resume as in TrainJob.
  TinyTrainer(const TinySpeech& speech, const TrainJob& job, cuda::Runtime* gpu = nullptr,
              int64_t cache_bytes = 0)
      : job(job),
        base(open_model(speech.model)),
        config(with_head(base.config)),
        model{Encoder(config), {TaskHead(config.task, config.width)}},
        store(gpu) {
    TensorMap tensors = base.tensors;
    initialise_missing(tensors, tensor_specs(model.task), 0);
    store.bind(param_requests(model), tensors, "tiny",
               [&](std::string_view n) { return finetune_range(n, job.config.train.freeze); },
               {"head", "encoder"});
    const Manifest all = read_manifest(speech.manifest);
    train = {all.select("train"), {}}, dev = {all.select("dev"), {}};
    train.check = check_data(train.manifest, {.units = units});
    dev.check = check_data(dev.manifest, {.units = units});
    objective = ctc_objective(this->job.config, model, units, train, dev, 1, {cache_bytes, 0, ""});
  }
  TinyTrainer(const TinyTrainer&) = delete;

  // The trainer, of `objective` as it is now.
  Trainer& open() {
    if (job.resume)
      run = RunDir::resume(job.run);
    else
      run = RunDir::create(job.run, to_toml(job.config), "{}");
    trainer.emplace(job.config, config, store, TensorMap(), *objective, *run);
    return *trainer;
  }

 private:
  Config with_head(Config config) const {
    config.task = {.kind = "ctc", .head = "linear", .units = units.symbols()};
    return config;
  }
};

// Another objective, at whose edges a test does something.
class StandIn : public Objective {
 public:
  explicit StandIn(std::unique_ptr<Objective> real) : real_(std::move(real)) {}

  const std::vector<int64_t>& samples() const override { return real_->samples(); }
  void prefetch(const Batch& batch) override { real_->prefetch(batch); }
  void begin_update(const Rng& rng, const Batch& all) override { real_->begin_update(rng, all); }
  void forward(Tape& t, const Batch& batch) override { real_->forward(t, batch); }
  std::vector<std::string> details() const override { return real_->details(); }
  void add_numbers(Context& ctx, Tensor numbers) override { real_->add_numbers(ctx, numbers); }
  std::string names(const Batch& batch) const override { return real_->names(batch); }
  Scores evaluate(Context& ctx, const std::string& folder) override {
    return real_->evaluate(ctx, folder);
  }
  void plan_evaluation(Context& ctx) override { real_->plan_evaluation(ctx); }
  int64_t held_bytes(int64_t batch_samples) const override {
    return real_->held_bytes(batch_samples);
  }

 private:
  std::unique_ptr<Objective> real_;
};

}  // namespace sft::test
