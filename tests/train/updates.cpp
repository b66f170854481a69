// Updates on a device: what it decides by itself, and when the host hears of it.
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <set>
#include <sstream>

#include "engine/cuda/gemm.h"
#include "engine/formats/numbers.h"
#include "engine/transfer.h"
#include "tests/allocations.h"
#include "tests/train/tiny_trainer.h"
#include "train/optimise.h"

using namespace sft;

namespace {

const std::vector<std::string> kSettings = {"train.head_only=0", "sched.warmup=0",
                                            "batch.utterances=2", "train.steps=6"};

std::vector<std::string> with(std::vector<std::string> more) {
  more.insert(more.begin(), kSettings.begin(), kSettings.end());
  return more;
}

TrainJob job_of(const test::TinySpeech& speech, const std::string& run, Where where,
                std::vector<std::string> more = {}) {
  if (where.device == Device::cuda)
    more.insert(more.end(), {"run.device=cuda",
                             where.compute() == Dtype::bf16 ? "run.math=bf16" : "run.math=exact"});
  return speech.job(run, with(std::move(more)));
}

cuda::Runtime* gpu_of(Where where) {
  return where.device == Device::cuda ? &shared_gpu() : nullptr;
}

std::vector<std::byte> bytes_of(const ParamStore& store, Tensor t) {
  Arena host;
  const Tensor copy = store.on_host(t, host);
  const auto* p = static_cast<const std::byte*>(copy.data);
  return {p, p + t.bytes()};
}

int64_t applied(const ParamStore& store, size_t range) {
  Arena host;
  return store.on_host(store.steps(), host).as<int64_t>()[range];
}

enum class Plant { loss, gradient };

// Spoils one update.
class Spoiled : public test::StandIn {
 public:
  Spoiled(std::unique_ptr<Objective> real, ParamStore& store, Plant plant, uint32_t update)
      : StandIn(std::move(real)), store_(store), plant_(plant), update_(update) {}

  void begin_update(const Rng& rng, const Batch& all) override {
    StandIn::begin_update(rng, all);
    if (rng.update == update_) before_ = state();
    if (rng.update == update_ + 1) after_ = state();
  }
  void add_numbers(Context& ctx, Tensor numbers) override {
    StandIn::add_numbers(ctx, numbers);
    if (ctx.dry || ctx.rng.update != update_) return;
    const double infinite = std::numeric_limits<double>::infinity();
    const float nan = std::nanf("");
    if (plant_ == Plant::loss)
      write(ctx, &infinite, numbers.slice(0, 1));
    else
      store_.write(&nan, store_.grad().slice(store_.grad().count() / 2, 1));
  }
  void check() const {
    REQUIRE(!before_.empty());
    EXPECT(before_ == after_);
  }

 private:
  // The weights, their moments and counts.
  std::vector<std::byte> state() const {
    std::vector<std::byte> all;
    for (const Tensor& t : {store_.master(), store_.moment1(), store_.moment2(), store_.steps()}) {
      const std::vector<std::byte> bytes = bytes_of(store_, t);
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    return all;
  }

  ParamStore& store_;
  Plant plant_;
  uint32_t update_;
  std::vector<std::byte> before_, after_;
};

// A trainer whose update `update` is spoiled.
std::unique_ptr<test::TinyTrainer> spoiled(const test::TinySpeech& speech, const TrainJob& job,
                                           Where where, Plant plant, uint32_t update) {
  auto tiny = std::make_unique<test::TinyTrainer>(speech, job, gpu_of(where), 1 << 20);
  tiny->objective =
      std::make_unique<Spoiled>(std::move(tiny->objective), tiny->store, plant, update);
  tiny->open().plan_memory(int64_t{1} << 31);
  return tiny;
}

std::vector<nlohmann::json> updates_of(const std::string& run) {
  std::vector<nlohmann::json> found;
  std::istringstream text(read_text(run + "/metrics.jsonl"));
  for (std::string line; std::getline(text, line);)
    if (auto json = nlohmann::json::parse(line); json.contains("loss")) found.push_back(json);
  return found;
}

}  // namespace

TEST_CASE("updates: one that is not finite is skipped where it is computed, and named") {
  const test::TinySpeech speech;
  int runs = 0;
  for (const Where where : everywhere())
    for (const Plant plant : {Plant::loss, Plant::gradient}) {
      const TrainJob job =
          job_of(speech, std::to_string(runs++), where, {"eval.every=100", "train.steps=20"});
      const auto tiny = spoiled(speech, job, where, plant, 4);
      std::vector<int64_t> heard;
      const TrainerReport report = tiny->trainer->run(
          [&](int64_t step, double, const std::string&) { heard.push_back(step); });
      dynamic_cast<const Spoiled&>(*tiny->objective).check();
      EXPECT(report.step == 20);
      EXPECT(report.skipped == 1);
      REQUIRE(heard.size() == 20);
      for (size_t u = 0; u < 20; ++u) EXPECT(heard[u] == static_cast<int64_t>(u + 1));
      const auto lines = updates_of(job.run);
      REQUIRE(lines.size() == 20);
      EXPECT(lines[3]["skipped"] == 0);
      EXPECT(lines[4]["skipped"] == 1);
      EXPECT(lines[4][plant == Plant::loss ? "loss" : "norm"].is_null());
      EXPECT(lines[5]["norm"].get<double>() > 0);
      const std::string log = read_text(job.run + "/log.txt");
      EXPECT(log.find("update 4: loss ") != std::string::npos);
      EXPECT(log.find("skipped; batch train") != std::string::npos);
      for (const size_t range : {0, 1}) EXPECT(applied(tiny->store, range) == 19);
    }
}

TEST_CASE(
    "updates: resumed behind a skipped one, a run has the bits of one that was not broken off") {
  const test::TinySpeech speech;
  int runs = 0;
  for (const Where where : everywhere()) {
    const auto job = [&](const std::string& name) {
      return job_of(speech, name, where, {"train.steps=20", "eval.every=2"});
    };
    const TrainJob whole = job(fmt::format("whole{}", runs));
    spoiled(speech, whole, where, Plant::gradient, 4)->trainer->run([](auto...) {});
    TrainJob broken = job(fmt::format("broken{}", runs++));
    const auto breaks = [](int64_t step, double, const std::string&) {
      if (step == 9) fail(Kind::internal, "the power is gone");
    };
    const Error e = test::error_of(
        [&] { spoiled(speech, broken, where, Plant::gradient, 4)->trainer->run(breaks); });
    EXPECT(e.message == "the power is gone");
    broken.resume = true;
    const auto again = spoiled(speech, broken, where, Plant::gradient, 4);
    REQUIRE(again->trainer->resume([](const std::string&) {}));
    EXPECT(applied(again->store, 1) == 7);
    EXPECT(again->trainer->run([](auto...) {}).skipped == 1);
    for (const char* file :
         {"/ckpt/step-00000020/model.gguf", "/ckpt/step-00000020/state.safetensors"})
      EXPECT_MESSAGE(read_text(whole.run + file, 1 << 24) == read_text(broken.run + file, 1 << 24),
                     file);
    EXPECT(updates_of(broken.run).size() == 20);
  }
}

TEST_CASE("updates: a device is asked for its numbers when the next update is under way") {
  class Watched : public test::StandIn {
   public:
    Watched(std::unique_ptr<Objective> real, std::string& events)
        : StandIn(std::move(real)), events_(events) {}
    void begin_update(const Rng& rng, const Batch& all) override {
      StandIn::begin_update(rng, all);
      if (watching) events_ += fmt::format("{} ", rng.update);
    }
    Scores evaluate(Context& ctx, const std::string& folder) override {
      events_ += "scores ";
      return StandIn::evaluate(ctx, folder);
    }
    bool watching = false;

   private:
    std::string& events_;
  };
  const test::TinySpeech speech;
  int runs = 0;
  for (const Where where : everywhere()) {
    const TrainJob job = job_of(speech, std::to_string(runs++), where,
                                {"train.steps=30", "eval.every=3", "train.head_only=1"});
    test::TinyTrainer tiny(speech, job, gpu_of(where), 1 << 20);
    std::string events;
    auto watched = std::make_unique<Watched>(std::move(tiny.objective), events);
    Watched& watch = *watched;
    tiny.objective = std::move(watched);
    tiny.open().plan_memory(int64_t{1} << 31);
    watch.watching = true;
    tiny.trainer->run([&](int64_t step, double, const std::string&) {
      events += fmt::format("({}) ", step - 1);
      if (step == 6) watch.watching = false;
    });
    const std::string at_once = "0 (0) 1 (1) 2 (2) scores 3 (3) 4 (4) 5 (5) scores ";
    const std::string late = "0 1 (0) 2 (1) (2) scores 3 4 (3) 5 (4) (5) scores ";
    EXPECT(events.starts_with(where.device == Device::cuda ? late : at_once));
  }
}

TEST_CASE("updates: the bf16 copy of what trains stays current") {
  if (const std::string why = no_gpu(); !why.empty()) return test::skip(why);
  const test::TinySpeech speech(2);
  const Where where{Device::cuda, Math::bf16};
  test::TinyTrainer tiny(speech, job_of(speech, "run", where), &shared_gpu());
  ParamStore& store = tiny.store;
  StepMemory memory(&shared_gpu());
  memory.commit();
  Context ctx = memory.context(store.prepared(), Math::bf16, false);
  const auto weight = [&](const char* name) { return store.find(name)->value; };
  const auto copies_of = [&](size_t range) {
    const Tensor p = store.part(store.master(), store.ranges()[range]);
    const Prepared::Form* form = cuda::bf16_copy(store.prepared(), p.data);
    std::vector<uint16_t> copy(p.count()), rounded(p.count());
    REQUIRE(form);
    EXPECT(form->current);
    read(ctx, Tensor(form->memory.get(), p.shape, Dtype::bf16, Device::cuda), copy.data());
    std::vector<float> values(p.count());
    read(ctx, p, values.data());
    f32_to_bf16(values.data(), rounded.data(), p.count());
    EXPECT(copy == rounded);
    return copy;
  };
  const Tensor numbers = ctx.temporary({2}, Dtype::f64);
  const auto update = [&](double loss) {
    store.forget_gradients();  // zeros: weight decay alone moves the weights
    write(ctx, &loss, numbers.slice(0, 1));
    optimise(ctx, store, {.lr = 0.1f, .weight_decay = 0.5f, .decoupled = true}, numbers.slice(0, 1),
             numbers.slice(1, 1));
  };

  // nobody has asked for one
  update(1);
  EXPECT(cuda::bf16_copy(store.prepared(), store.master().data) == nullptr);
  for (const char* name : {"task.out.weight", "enc.1.ffn.up.weight", "enc.0.attn.k.weight"})
    EXPECT(reinterpret_cast<uintptr_t>(cuda::weight_as(ctx, weight(name), Dtype::bf16).data) % 16 ==
           0);
  const auto head = copies_of(0), encoder = copies_of(1);
  update(1);
  EXPECT(copies_of(0) != head);
  EXPECT(copies_of(1) != encoder);
  const auto head_then = copies_of(0), encoder_then = copies_of(1);
  update(std::nan(""));
  EXPECT(copies_of(0) == head_then);
  store.set_active(1, false);
  update(1);
  EXPECT(copies_of(0) != head_then);
  EXPECT(copies_of(1) == encoder_then);
  // from outside: made again at its next use
  const std::vector<float> ones(store.master().count(), 1);
  store.write(ones.data(), store.master());
  for (const ParamStore::Range& range : store.ranges()) store.weights_changed(range);
  EXPECT(!cuda::bf16_copy(store.prepared(), store.master().data)->current);
  cuda::weight_as(ctx, weight("task.out.weight"), Dtype::bf16);
  copies_of(0);
}

TEST_CASE("updates: with too little memory the longest utterance that would fit is named") {
  const test::TinySpeech speech;  // 0.5 s to 1.03 s
  for (const Where where : everywhere()) {
    test::TinyTrainer tiny(speech, job_of(speech, "run", where), gpu_of(where));
    Trainer& trainer = tiny.open();
    const auto plan = trainer.plan_memory(int64_t{1} << 40);
    std::set<std::string> said;
    for (int64_t available = plan.needed(); available > plan.parameters / 2;
         available -= plan.activations / 16) {
      const Error e = test::error_of([&] {
        trainer.plan_memory(available);
        fail(Kind::internal, "it fits");
      });
      if (e.kind == Kind::internal) continue;
      EXPECT(e.kind == Kind::resource);
      const std::string needs = fmt::format("MiB of {}memory for utterances of 1.0 s, ",
                                            where.device == Device::cuda ? "device " : "");
      EXPECT(e.message.find(needs) != std::string::npos);
      said.insert(e.message.substr(e.message.rfind(": ") + 2));
    }
    EXPECT(said.contains("not enough for any"));
    EXPECT(said.contains("enough for 0.8 s"));
    std::filesystem::remove_all(tiny.job.run);
  }
}
