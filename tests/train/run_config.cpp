#include "train/run_config.h"

#include "engine/io/file.h"
#include "tests/doctest.h"
#include "tests/temporary_folder.h"

using namespace sft;

namespace {

std::string message(const std::vector<std::string>& settings, const char* task = "ctc") {
  const Error e = test::error_of([&] {
    ConfigBuilder builder(task);
    for (const std::string& setting : settings) builder.set(setting);
    builder.finish();
  });
  EXPECT(e.kind == Kind::usage);
  return e.message;
}

}  // namespace

TEST_CASE("run_config: every key is read by --set and by --config, and survives run.toml") {
  const test::TemporaryFolder folder;
  for (const char* task : {"ctc", "classify", "pretrain"}) {
    const RunConfig config = ConfigBuilder(task).finish();
    const std::string path = folder / (std::string(task) + ".toml");
    write_text(path, to_toml(config));
    ConfigBuilder from_file(task);
    from_file.file(path);
    EXPECT(first_difference(config, from_file.config()) == "");
    EXPECT(first_difference(config, run_config_from_toml(path)) == "");
    EXPECT(from_file.print().find("# default") == std::string::npos);
  }
  RunConfig odd = ConfigBuilder("ctc").finish();
  odd.data.label = "a \"b\" \\ \t c", odd.optim.lr = 3.0000000000000004e-7;
  odd.train.freeze = {"conv.*", "enc.?"};
  write_text(folder / "odd.toml", to_toml(odd));
  const RunConfig again = run_config_from_toml(folder / "odd.toml");
  EXPECT(first_difference(odd, again) == "");
  EXPECT(again.optim.lr == odd.optim.lr);
  ConfigBuilder builder("ctc");
  builder.set("train.freeze=conv.*,enc.?");
  EXPECT(builder.config().train.freeze == odd.train.freeze);
}

TEST_CASE("run_config: --set over the file over the recipe over the defaults, with origins") {
  const test::TemporaryFolder folder;
  write_text(folder / "c.toml", "[train]\nsteps = 7\nrecipe = \"full\"\n[optim]\nlr = 1\n");
  ConfigBuilder builder("ctc");
  builder.file(folder / "c.toml");
  builder.set("train.steps=9");
  const RunConfig c = builder.finish();
  EXPECT(c.train.steps == 9);
  EXPECT(c.optim.lr == 1);
  EXPECT(c.train.head_only == 0);
  const std::string printed = builder.print();
  for (const std::string& line :
       {std::string("train.steps = 9  # --set\n"), "optim.lr = 1.0  # " + (folder / "c.toml"),
        std::string("train.head_only = 0.0  # recipe full\n"),
        std::string("optim.beta1 = 0.9  # default\n")})
    EXPECT_MESSAGE(printed.find(line) != std::string::npos, line);
  ConfigBuilder given("ctc");
  given.set("train.head_only=0.3");
  given.set("train.recipe=full");
  EXPECT(given.finish().train.head_only == 0.3);
  given.set_default("eval.select", "per", "data.units");
  EXPECT(given.finish().eval.select == "per");
}

TEST_CASE("run_config: one size of batch takes the other's place; both are an error") {
  ConfigBuilder builder("ctc");
  builder.set("batch.seconds=30");
  EXPECT(builder.finish().batch.utterances == 0);
  EXPECT(message({"batch.seconds=30", "batch.utterances=4"}).find("give one") != std::string::npos);
  ConfigBuilder pretrain("pretrain");
  pretrain.set("batch.utterances=4");
  EXPECT(pretrain.finish().batch.seconds == 0);
}

TEST_CASE("run_config: what is wrong is named") {
  const Error unknown = test::error_of([] { ConfigBuilder("ctc").set("optim.lrr=1"); });
  EXPECT(unknown.kind == Kind::usage);
  EXPECT(unknown.message == "--set: there is no key optim.lrr");
  EXPECT(unknown.hint.find("optim.lr") != std::string::npos);
  EXPECT(message({"train.steps=ten"}) == "--set: train.steps is not a whole number");
  EXPECT(message({"augment.specaugment=1"}) == "--set: augment.specaugment is not true or false");
  EXPECT(message({"no equals"}).find("expected KEY=VALUE") != std::string::npos);
  for (const char* setting : {"train.steps=0",      "train.head_only=1.5",  "train.accumulate=0",
                              "train.max_skips=0",  "optim.kind=sgd",       "optim.lr=nan",
                              "optim.beta2=1",      "optim.clip=0",         "sched.kind=cosine",
                              "sched.warmup=0.8",   "model.dropout=1",      "model.layerdrop=-1",
                              "head.kind=mean",     "head.width=0",         "head.dropout=1",
                              "data.max_bad=-1",    "data.normalize=lower", "augment.time_masks=-1",
                              "eval.every=0",       "eval.select=accuracy", "ckpt.minutes=0",
                              "ckpt.keep=1",        "batch.utterances=-2",  "log.every=0",
                              "run.seed=-1",        "run.math=int8",        "run.device=tpu",
                              "task.kind=classify", "train.recipe=half"}) {
    const std::string key = std::string(setting).substr(0, std::string(setting).find('='));
    const std::string what = message({setting});
    const std::string last = key.substr(key.find('.') + 1);
    EXPECT_MESSAGE(what.find(last) != std::string::npos, setting << ": " << what);
  }
  EXPECT(message({"eval.select=wer"}, "classify").find("accuracy") != std::string::npos);
}

TEST_CASE("run_config: types of a file, its syntax, its line") {
  const test::TemporaryFolder folder;
  const auto error = [&](const char* text) {
    write_text(folder / "c.toml", text, Existing::replace);
    return test::error_of([&] { ConfigBuilder("ctc").file(folder / "c.toml"); });
  };
  EXPECT(error("[train]\nsteps = 1.5\n").message ==
         (folder / "c.toml") + ": train.steps is not a whole number");
  EXPECT(error("[optim]\nlr = \"1\"\n").message.find("optim.lr is not a number") !=
         std::string::npos);
  EXPECT(error("[train]\nfreeze = [1]\n").message.find("array of strings") != std::string::npos);
  EXPECT(error("[train]\nsteps == 3\n").message.find("c.toml:2: ") != std::string::npos);
  EXPECT(error("[trian]\nsteps = 3\n").hint.find("train.steps") != std::string::npos);
}
